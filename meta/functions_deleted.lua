
-- --- deleted files that are open
--
-- An inode without a name stays while somebody has it open. Who removes the name knows of his own open
-- files only, and asking all others would cost calls. So where other mounts are at work, a file that loses
-- its last name goes on a list of its shard first. Every mount looks through the list, a heartbeat or two
-- later, for what it has open, becomes a holder of that, and tells the shard up to which place it has
-- looked. What all mounts have seen leaves the list, and goes if nobody holds it. (Who lets go of the last
-- hold can't know whether it is on the list, so puts it there again if there is one.) A mount that is slow,
-- stopped or cut off holds the list up until its session is taken for dead; nothing depends on messages
-- that may be lost, or on clocks. An open() that overlaps the removal of the name by more than a heartbeat
-- may find the file gone.
--
--   To   hash   q -> sessions that hold it, with commas between
--   TD   list   q of files that lost their last name; the first one's place is counter d (Tc)
--   TV   hash   session of each mount -> place before which it has looked. It is there from before the
--               mount's first open() to its end; with one mount nothing is put on the list

local held = {}

local SEEN_MAX = 200 -- leave the list in one call

function held.add(T, q, who)
  local key, field = T .. 'o', hex(q)
  local s = call('HGET', key, field)
  if not s then
    call('HSET', key, field, who)
  elseif not string.find(',' .. s .. ',', ',' .. who .. ',', 1, true) then
    call('HSET', key, field, s .. ',' .. who)
  end
end

function held.remove(T, q, who) -- true: it was the last who held it
  local key, field, rest, found = T .. 'o', hex(q), {}, false
  for w in string.gmatch(call('HGET', key, field) or '', '[^,]+') do
    if w == who then
      found = true
    else
      rest[#rest + 1] = w
    end
  end
  if not found then return false end
  if #rest > 0 then
    call('HSET', key, field, table.concat(rest, ','))
    return false
  end
  call('HDEL', key, field)
  return true
end

local function go(T, q)
  local ok, r = pcall(get, T, q) -- a damaged record is left to fsck
  if ok and r and r.nlink == 0 then pcall(destroy, T, q, r) end
end

function held.let_go(T, q, who)
  if not held.remove(T, q, who) then return end
  if call('EXISTS', T .. 'D') == 1 then
    call('RPUSH', T .. 'D', hex(q))
  else
    go(T, q)
  end
end

-- Takes one name away from inode q; `keep`: a session that has it open, or "". Returns its record afterwards.
local function drop_link(T, q, r, keep, now)
  r.nlink = r.nlink - 1
  r.ctime = now
  if r.nlink > 0 then return put(T, q, r) end
  r.nlink = 0
  local list = r.kind == REG and call('HLEN', T .. 'V') > 1
  if keep ~= '' then held.add(T, q, keep) end
  if list then call('RPUSH', T .. 'D', hex(q)) end
  if list or keep ~= '' then return put(T, q, r) end
  destroy(T, q, r)
  return build(r)
end

local function list_of(T) -- places of its first and after its last
  local first = tonumber(call('HGET', T .. 'c', 'd') or 0)
  if not first then damaged('counter d of shard ' .. shard_of(T)) end
  return first, first + call('LLEN', T .. 'D')
end

-- place, how many. Reply: the place of the first, the place after the last, inodes with spaces between
function held.list(K, A)
  local first, stop = list_of(K[1])
  local from = math.max(tonumber(A[1]), first)
  local some = call('LRANGE', K[1] .. 'D', from - first, from - first + tonumber(A[2]) - 1)
  return { 0, fmt('%.0f', from), fmt('%.0f', math.min(stop, from + #some)), table.concat(some, ' ') }
end

-- session, place before which it has looked ("join": it begins; "leave": it ends), retry. Some of what all
-- have seen leaves the list. Reply: 0, or 1: there is more; the place after the list's last. ESTALE: it is
-- not among the mounts (any more).
function held.seen(K, A)
  local T, sid = K[1], A[1]
  local first, stop = list_of(T)
  if A[2] == 'leave' then
    call('HDEL', T .. 'V', sid)
  elseif A[2] == 'join' then
    call('HSET', T .. 'V', sid, fmt('%.0f', first))
  elseif call('HEXISTS', T .. 'V', sid) == 0 then
    return ESTALE
  else
    call('HSET', T .. 'V', sid, A[2])
  end
  local least = stop
  for _, v in ipairs(call('HVALS', T .. 'V')) do least = math.min(least, tonumber(v) or 0) end
  local n = math.min(least - first, SEEN_MAX)
  if n > 0 then
    local some = call('LRANGE', T .. 'D', 0, n - 1)
    call('LTRIM', T .. 'D', n, -1)
    next_of(T, 'd', n)
    for _, q in ipairs(some) do
      if tonumber(q, 16) and call('HEXISTS', T .. 'o', q) == 0 then go(T, tonumber(q, 16)) end
    end
  end
  return { least - first > SEEN_MAX and 1 or 0, fmt('%.0f', stop) }
end

-- inode, session, retry: the session holds it, if it has no name. ENOENT: it is gone.
function held.hold(K, A)
  local T, q = K[1], tonumber(A[1])
  local r = get(T, q)
  if not r then return ENOENT end
  if r.nlink == 0 then held.add(T, q, A[2]) end
  return { 0 }
end

-- inode, session, retry: the last handle was closed there
function held.release(K, A)
  held.let_go(K[1], tonumber(A[1]), A[2])
  return { 0 }
end
