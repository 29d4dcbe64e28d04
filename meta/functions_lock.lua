
-- --- locks of files: fcntl, flock
--
-- Locks lie in the shard of their inode, one call each. Two kinds that know nothing of each other: "P"
-- (fcntl: ranges; of a process, or of an open file description) and "F" (flock: the whole file).
--
--   Tk<kind><q>    hash   owner -> what it holds: u32 pid, u8 0, then ranges in order, 17 bytes each:
--                         u64 first byte, u64 last byte (big-endian), u8 1 read | 2 write
--   Tw<kind><q>    zset   waiter -> its place in the queue
--   Twr<kind><q>   hash   waiter -> what it wants (see queue())
--   Twe            hash   owner -> "q waiter;" of each request of its that waits here and minds deadlocks
--   Twx            hash   (shard 0, volumes with several shards) owner -> "shard q waiter"
--   Tks<session>   set    what has to go when the session ends: "k<kind><q> owner", "w<kind><q> waiter",
--                         "xP0 owner"
--
-- An owner is kind, session, ".", the kernel's number of the process or description on that node. A
-- waiter is session, ".", the number of the request. Offsets are pairs of 32-bit halves: a number of
-- Lua's is exact to 2^53 only, and the last byte of a file is 2^63 - 1.
--
-- Waiting: the request is queued here and its client does nothing until it is told. Whatever takes locks
-- away (unlock, downgrade, a session's end) grants in the order of the queue what no longer conflicts,
-- in the same call, and publishes to each winner's session:
--
--   "Lg <waiter>"  granted      "LG <waiter>"  granted, and call lock_wake, for there may be more
--   "Lf <waiter>"  held back for fairness: ask again, in a while, with force
--
-- Who missed a message (the connection was lost) sends its request again: a waiter keeps its place, and
-- what was granted is held already, which is no conflict.
--
-- Fairness. As Linux has it, a request waits only for locks that are held; so a stream of readers may
-- pass a waiting writer for ever. Here it may for FAIR_MS: after that, requests that conflict with the
-- writer's, that could wait, and whose owner holds nothing of this file, are held back behind it. Not for
-- ever either: programs may count on getting a read lock while another one is held. After a while their
-- client asks with force.
--
-- Work is bounded: ranges of a file by RANGES_MAX (more: ENOLCK), a look at the queue by WAKE_MAX waiters
-- and WORK_MAX comparisons, the search for a deadlock by WALK_MAX owners. So the rare file with more
-- waiters than WAKE_MAX that want different ranges grants only within that window.

local locks = {}
do
  local EDEADLK, ENOLCK = -35, -37
  local RANGES_MAX, WAITERS_MAX, WAKE_MAX, WORK_MAX, WALK_MAX = 4096, 65536, 128, 5000, 64
  local FAIR_MS, FAIR_LOOK, BLOCKERS_MAX = 1000, 16, 32
  local BOTTOM = 4294967295
  -- An exclusive lock of everything: nobody else gets anything.
  local FULL = '\0\0\0\0\0\0\0\0\127\255\255\255\255\255\255\255\2'

  -- --- ranges: { start high, start low, end high, end low, type }

  local function range_of(s, t)
    local a, b, c, d = struct.unpack('>I4I4I4I4', s)
    return { a, b, c, d, t }
  end

  local function range_put(r)
    return struct.pack('>I4I4I4I4', r[1], r[2], r[3], r[4])
  end

  local function less(ah, al, bh, bl)
    return ah < bh or (ah == bh and al < bl)
  end

  local function overlap(x, r)
    return not less(r[3], r[4], x[1], x[2]) and not less(x[3], x[4], r[1], r[2])
  end

  local function clash(x, r) -- of different owners
    return (x[5] == 2 or r[5] == 2) and overlap(x, r)
  end

  local function before(h, l)
    if l > 0 then return h, l - 1 end
    return h - 1, BOTTOM
  end

  local function after(h, l)
    if l < BOTTOM then return h, l + 1 end
    return h + 1, 0
  end

  -- What one owner holds: `raw`, ranges of 17 bytes in order, n of them. They don't overlap, so their
  -- ends are in order too, and nothing here looks at more than a few of them.

  local function at(o, i) -- the i-th, from 1
    return struct.unpack('>I4I4I4I4B', o.raw, i * 17 - 16)
  end

  local function first_ending(o, h, l) -- the first that ends at or behind a place; n + 1: none does
    local lo, hi = 1, o.n + 1
    while lo < hi do
      local mid = floor((lo + hi) / 2)
      local _, _, eh, el = at(o, mid)
      if less(eh, el, h, l) then lo = mid + 1 else hi = mid end
    end
    return lo
  end

  local function touches(o, r) -- does it hold some of r?
    local i = first_ending(o, r[1], r[2])
    if i > o.n then return false end
    local sh, sl = at(o, i)
    return not less(r[3], r[4], sh, sl)
  end

  -- The first of another owner's ranges that conflicts with r, or nil; and how many were looked at.
  local function first_clash(o, r)
    local from = first_ending(o, r[1], r[2])
    for i = from, o.n do
      local a, b, c, d, t = at(o, i)
      if less(r[3], r[4], a, b) then return nil, i - from + 4 end
      if t == 2 or r[5] == 2 then return { a, b, c, d, t }, i - from + 4 end
    end
    return nil, o.n - from + 5
  end

  -- Sets r (type 0: takes it away). Same type merges, another is cut. Whatever lies inside r goes; only the
  -- first and the last of what it meets can reach beyond it.
  local function combine(o, r)
    local bh, bl = before(r[1], r[2])
    local ah, al = after(r[3], r[4])
    local from, to = first_ending(o, bh, bl), first_ending(o, r[3], r[4])
    if to <= o.n then -- does it begin in r, or with its type right behind?
      local sh, sl, _, _, t = at(o, to)
      if less(ah, al, sh, sl) or (sh == ah and sl == al and t ~= r[5]) then to = to - 1 end
    else
      to = o.n
    end
    if to + 1 <= o.n then -- one ends with r: the next may begin right behind
      local sh, sl, _, _, t = at(o, to + 1)
      if sh == ah and sl == al and t == r[5] then to = to + 1 end
    end
    local new, left, right = { r[1], r[2], r[3], r[4], r[5] }, '', ''
    local pieces = { sub(o.raw, 1, (from - 1) * 17) }
    if from <= to then
      local a, b, c, d, t = at(o, from)
      if t == r[5] then
        if less(a, b, new[1], new[2]) then new[1], new[2] = a, b end
      elseif less(a, b, r[1], r[2]) then
        if less(c, d, bh, bl) then bh, bl = c, d end
        left = struct.pack('>I4I4I4I4B', a, b, bh, bl, t)
      end
      a, b, c, d, t = at(o, to)
      if t == r[5] then
        if less(new[3], new[4], c, d) then new[3], new[4] = c, d end
      elseif less(r[3], r[4], c, d) then
        right = struct.pack('>I4I4I4I4B', ah, al, c, d, t)
      end
    end
    pieces[2] = left
    pieces[3] = r[5] > 0 and range_put(new) .. char(r[5]) or ''
    pieces[4] = right
    pieces[5] = sub(o.raw, to * 17 + 1)
    if from > to then pieces[5] = sub(o.raw, (from - 1) * 17 + 1) end
    return table.concat(pieces)
  end

  local function covers(o, r) -- does it hold all of r, as strong as that?
    local h, l = r[1], r[2]
    for i = first_ending(o, h, l), o.n do
      local a, b, c, d, t = at(o, i)
      if t < r[5] or less(h, l, a, b) then return false end
      if not less(c, d, r[3], r[4]) then return true end
      h, l = after(c, d)
    end
    return false
  end

  -- --- what is held

  local function kind_of(owner)
    return sub(owner, 1, 1)
  end

  local function session_key(T, of) -- of an owner or a waiter
    return T .. 'ks' .. (string.match(of, '^[PF]?(%d+)%.') or '0')
  end

  local NOTHING = { raw = '', n = 0 }

  local function load(T, kind, q)
    local key = T .. 'k' .. kind .. hex(q)
    local all, held = call('HGETALL', key), { key = key, n = 0, work = 0, by = {} }
    for i = 1, #all, 2 do
      local s = all[i + 1]
      if #s % 17 ~= 5 then damaged('locks of ' .. shard_of(T) .. ':' .. fmt('%.0f', q)) end
      local o = { owner = all[i], head = sub(s, 1, 5), raw = sub(s, 6), n = (#s - 5) / 17 }
      held[#held + 1], o.at = o, #held + 1
      held.by[o.owner] = o
      held.n = held.n + o.n
      if o.raw == FULL then held.full = o.owner end
    end
    return held
  end

  -- Writes what an owner holds now.
  local function save(T, q, held, owner, head, raw)
    local o = held.by[owner]
    local member = 'k' .. kind_of(owner) .. hex(q) .. ' ' .. owner
    if held.full == owner then held.full = nil end
    held.n = held.n + #raw / 17 - (o and o.n or 0)
    if raw == '' then
      if not o then return end
      call('HDEL', held.key, owner)
      call('SREM', session_key(T, owner), member)
      local last = table.remove(held) -- takes its place
      if last ~= o then held[o.at], last.at = last, o.at end
      held.by[owner] = nil
      return
    end
    call('HSET', held.key, owner, head .. raw)
    if not o then
      call('SADD', session_key(T, owner), member)
      o = { owner = owner, at = #held + 1 }
      held[o.at], held.by[owner] = o, o
    end
    o.head, o.raw, o.n = head, raw, #raw / 17
    if raw == FULL then held.full = owner end
  end

  -- Owners that stand in the way of r, `most` at most.
  local function blockers(held, owner, r, most)
    local out = {}
    for _, o in ipairs(held) do
      if o.owner ~= owner then
        local x, looked = first_clash(o, r)
        held.work = held.work + looked
        if x then
          out[#out + 1] = o.owner
          if #out >= most then return out end
        end
      end
    end
    return out
  end

  -- --- who waits

  local function order_key(T, kind, q)
    return T .. 'w' .. kind .. hex(q)
  end

  local function record_key(T, kind, q)
    return T .. 'wr' .. kind .. hex(q)
  end

  local function waiter(T, kind, q, id)
    local s = call('HGET', record_key(T, kind, q), id)
    if not s then return nil end
    local ok, w = pcall(cmsgpack.unpack, s)
    local r = ok and type(w) == 'table' and w.range
    if type(r) ~= 'table' or #r ~= 5 or type(w.owner) ~= 'string' or type(w.head) ~= 'string' or
      #w.head ~= 5 or type(w.since) ~= 'number' then return nil end -- damaged: nobody waits there
    for i = 1, 5 do
      if type(r[i]) ~= 'number' or r[i] < 0 or r[i] > BOTTOM then return nil end
    end
    return w
  end

  local function waiter_put(T, kind, q, id, w)
    call('HSET', record_key(T, kind, q), id, cmsgpack.pack(w))
  end

  local function queue(T, q, id, w)
    local kind = kind_of(w.owner)
    local order = order_key(T, kind, q)
    local last = call('ZRANGE', order, -1, -1, 'WITHSCORES')
    call('ZADD', order, fmt('%.0f', (tonumber(last[2]) or 0) + 1), id)
    waiter_put(T, kind, q, id, w)
    call('SADD', session_key(T, id), 'w' .. kind .. hex(q) .. ' ' .. id)
    if w.minds then
      call('HSET', T .. 'we', w.owner, (call('HGET', T .. 'we', w.owner) or '') ..
        fmt('%.0f', q) .. ' ' .. id .. ';')
    end
  end

  local function leave(T, kind, q, id, w)
    call('ZREM', order_key(T, kind, q), id)
    call('HDEL', record_key(T, kind, q), id)
    call('SREM', session_key(T, id), 'w' .. kind .. hex(q) .. ' ' .. id)
    if not w.minds then return end
    local s = call('HGET', T .. 'we', w.owner) or ''
    local a, b = string.find(s, fmt('%.0f', q) .. ' ' .. id .. ';', 1, true)
    if not a then return end
    s = sub(s, 1, a - 1) .. sub(s, b + 1)
    if s == '' then
      call('HDEL', T .. 'we', w.owner)
    else
      call('HSET', T .. 'we', w.owner, s)
    end
  end

  local function tell(w, id, code)
    redis.pcall('PUBLISH', tostring(w.channel), 'L' .. code .. ' ' .. id)
  end

  -- Does one of these, who came earlier, hold r back?
  local function held_back(earlier, owner, r, now)
    for _, w in ipairs(earlier) do
      if w.owner ~= owner and now - w.since >= FAIR_MS and clash(w.range, r) then return true end
    end
    return false
  end

  -- Those at the head of the queue, up to `id`.
  local function earlier_than(T, kind, q, id)
    local out = {}
    for _, other in ipairs(call('ZRANGE', order_key(T, kind, q), 0, FAIR_LOOK - 1)) do
      if other == id then break end
      out[#out + 1] = waiter(T, kind, q, other)
    end
    return out
  end

  local function set_range(T, q, held, owner, head, r) -- false: too many
    local mine = held.by[owner] or NOTHING
    local raw = combine(mine, r)
    local more = #raw / 17 - mine.n
    if r[5] ~= 0 and more > 0 and held.n + more > RANGES_MAX then return false end
    save(T, q, held, owner, head, raw)
    return true
  end

  -- Grants what can be granted. True: call again, there may be more.
  local function wake(T, kind, q, held)
    local order = order_key(T, kind, q)
    local ids = call('ZRANGE', order, 0, WAKE_MAX - 1)
    if #ids == 0 then return false end
    held = held or load(T, kind, q)
    local stay, won, now, cut = {}, {}, now_ms(), #ids == WAKE_MAX
    for _, id in ipairs(ids) do
      if held.full then break end
      if held.work > WORK_MAX then
        cut = true
        break
      end
      local w = waiter(T, kind, q, id)
      if not w then
        call('ZREM', order, id)
      elseif #blockers(held, w.owner, w.range, 1) > 0 then
        stay[#stay + 1] = w
      elseif not held.by[w.owner] and held_back(stay, w.owner, w.range, now) then
        stay[#stay + 1] = w
        if not w.fair then
          w.fair = true
          waiter_put(T, kind, q, id, w)
          tell(w, id, 'f')
        end
      elseif set_range(T, q, held, w.owner, w.head, w.range) then
        leave(T, kind, q, id, w)
        won[#won + 1] = { w, id }
      end
    end
    local more = cut and #won > 0 and not held.full
    for i, v in ipairs(won) do tell(v[1], v[2], more and i == #won and 'G' or 'g') end
    return more
  end

  -- Would `me` wait for itself if it waited for these? Goes from each owner to what it waits for here.
  local function deadlock(T, me, todo)
    local seen, count, work, cache = {}, 0, 0, {}
    while #todo > 0 do
      local b = table.remove(todo)
      if b == me then return true end
      if not seen[b] then
        seen[b], count = true, count + 1
        if count > WALK_MAX or work > WORK_MAX then return false end
        for qs, id in string.gmatch(call('HGET', T .. 'we', b) or '', '(%d+) ([^;]+);') do
          local q = tonumber(qs)
          local w = waiter(T, 'P', q, id)
          if w then
            if not cache[q] then
              cache[q] = load(T, 'P', q)
              work = work + cache[q].n
            end
            for _, next_b in ipairs(blockers(cache[q], b, w.range, BLOCKERS_MAX)) do
              todo[#todo + 1] = next_b
            end
          end
        end
      end
    end
    return false
  end

  -- --- the functions

  -- inode, waiter, owner, type (0 unlock, 1 read, 2 write), range, pid, mode (1 may wait, 2 minds
  -- deadlocks, 4 with force, 8 wants to know who blocks), channel, retry.
  -- Reply: 0 done or 1 queued; 1 if the owner held a part of the range before, + 2: call lock_wake, + 4:
  -- held back; then, done: the inode's record; queued: owners that block (mode 8).
  function locks.lock_set(K, A)
    local T, q, id, owner = K[1], tonumber(A[1]), A[2], A[3]
    local kind, mode, r = kind_of(owner), tonumber(A[7]), range_of(A[5], tonumber(A[4]))
    local waits, minds, force, report = mode % 2 >= 1, mode % 4 >= 2, mode % 8 >= 4, mode >= 8
    local head = struct.pack('>I4', tonumber(A[6])) .. '\0'
    local held = load(T, kind, q)
    local mine, dropped = held.by[owner], false
    local had = mine and touches(mine, r)
    if r[5] == 0 then
      local more = false
      if had then
        set_range(T, q, held, owner, mine.head, r)
        more = wake(T, kind, q, held)
      end
      return { 0, (had and 1 or 0) + (more and 2 or 0), '' }
    end
    if kind == 'F' and mine and mine.raw ~= range_put(r) .. char(r[5]) then -- flock(2): not atomic
      save(T, q, held, owner, mine.head, '')
      dropped = true
    end
    local old = waits and waiter(T, kind, q, id)
    local stop = blockers(held, owner, r, (minds or report) and BLOCKERS_MAX or 1)
    local back = #stop == 0 and waits and not force and not mine and
      held_back(earlier_than(T, kind, q, id), owner, r, now_ms())
    if #stop == 0 and not back then
      if not set_range(T, q, held, owner, head, r) then return ENOLCK end
      if old then leave(T, kind, q, id, old) end
      local more = had and wake(T, kind, q, held) -- a downgrade
      local key, field = inode_key(T, q)
      return { 0, (had and 1 or 0) + (more and 2 or 0), call('HGET', key, field) or '' }
    end
    local result = 1
    if not waits then
      result = EAGAIN
    elseif not old then
      local todo = {}
      for i, b in ipairs(stop) do todo[i] = b end
      if minds and deadlock(T, owner, todo) then
        result = EDEADLK
      elseif call('ZCARD', order_key(T, kind, q)) >= WAITERS_MAX then
        result = ENOLCK
      else
        queue(T, q, id, { owner = owner, range = r, head = head, channel = A[8], since = now_ms(),
          minds = minds, fair = back })
      end
    elseif back and not old.fair then
      old.fair = true
      waiter_put(T, kind, q, id, old)
    end
    local more = dropped and wake(T, kind, q, held)
    if result ~= 1 then return result end
    return { 1, (had and 1 or 0) + (more and 2 or 0) + (back and 4 or 0), unpack(report and stop or {}) }
  end

  -- inode, owner, type, range. Reply: 0 nothing is in the way; 1, type, range, pid, owner
  function locks.lock_get(K, A)
    local T, q, owner, r = K[1], tonumber(A[1]), A[2], range_of(A[4], tonumber(A[3]))
    local first, by
    for _, o in ipairs(load(T, kind_of(owner), q)) do
      if o.owner ~= owner then
        local x = first_clash(o, r)
        if x and (not first or less(x[1], x[2], first[1], first[2])) then first, by = x, o end
      end
    end
    if not first then return { 0 } end
    return { 1, first[5], range_put(first), (struct.unpack('>I4', by.head)), by.owner }
  end

  -- inode, waiter, owner, type, range, retry. Reply: 0 it waits no more, 1 it was granted before;
  -- 2: call lock_wake
  function locks.lock_cancel(K, A)
    local T, q, id, owner = K[1], tonumber(A[1]), A[2], A[3]
    local kind, r = kind_of(owner), range_of(A[5], tonumber(A[4]))
    local w = waiter(T, kind, q, id)
    if w then
      leave(T, kind, q, id, w)
      return { 0, wake(T, kind, q) and 2 or 0 }
    end
    return { covers(load(T, kind, q).by[owner] or NOTHING, r) and 1 or 0, 0 }
  end

  -- inode, kind, retry. Reply: 0; 2: call again
  function locks.lock_wake(K, A)
    return { 0, wake(K[1], A[2], tonumber(A[1])) and 2 or 0 }
  end

  -- session, number (see session.close), retry: some of what it holds or waits for goes. Reply: how much is left; then kind and
  -- inode of each file for which lock_wake has to be called
  function locks.lock_sweep(K, A)
    local T = K[1]
    if not fence.holds(T, A[1], A[2]) then return ESTALE end
    local key, touched = T .. 'ks' .. A[1], {}
    for _, member in ipairs(call('SRANDMEMBER', key, 16)) do
      local what, kind, qs, who = string.match(member, '^([kwx])([PF])(%x+) (.+)$')
      local q = qs and tonumber(qs, 16)
      if what == 'k' then
        call('HDEL', T .. 'k' .. kind .. qs, who)
        touched[kind .. fmt('%.0f', q)] = true
      elseif what == 'w' then
        local w = waiter(T, kind, q, who)
        if w then leave(T, kind, q, who, w) end
        touched[kind .. fmt('%.0f', q)] = true
      elseif what == 'x' then
        call('HDEL', T .. 'wx', who)
      end
      call('SREM', key, member)
    end
    local out = { call('SCARD', key) }
    for of in pairs(touched) do
      local ok, more = pcall(wake, T, sub(of, 1, 1), tonumber(sub(of, 2)))
      if ok and more then out[#out + 1] = of end
    end
    return out
  end

  -- Deadlocks across shards: the client walks, with these two. A place is "shard q waiter".

  -- (shard 0) owner, its place ("": none to note), other owners..., retry. Reply: their places, or ""
  function locks.lock_place(K, A)
    local T, out = K[1], { 0 }
    if A[2] ~= '' then
      call('HSET', T .. 'wx', A[1], A[2])
      call('SADD', session_key(T, A[1]), 'xP0 ' .. A[1])
    end
    for i = 3, #A - 1 do out[#out + 1] = call('HGET', T .. 'wx', A[i]) or '' end
    return out
  end

  -- (shard 0) owner, place, retry: it waits there no more
  function locks.lock_unplace(K, A)
    local T = K[1]
    if call('HGET', T .. 'wx', A[1]) == A[2] then
      call('HDEL', T .. 'wx', A[1])
      call('SREM', session_key(T, A[1]), 'xP0 ' .. A[1])
    end
    return { 0 }
  end

  -- inode, waiter. Reply: owners that block it now
  function locks.lock_blockers(K, A)
    local T, q = K[1], tonumber(A[1])
    local w = waiter(T, 'P', q, A[2])
    if not w then return { 0 } end
    return { 0, unpack(blockers(load(T, 'P', q), w.owner, w.range, BLOCKERS_MAX)) }
  end
end
