
-- --- sessions (shard 0; cleanup in every shard)

-- JSON, time to live (ms), session ("0": a new one; else it comes back after it was taken for dead), retry
local function session_open(K, A)
  local T = K[1]
  local sid = A[3] ~= '0' and tonumber(A[3]) or next_of(T, 's', 1)
  call('HSET', T .. 'S', sid, A[1])
  call('ZADD', T .. 'H', now_ms() + tonumber(A[2]), sid)
  return { 0, sid }
end

-- session, time to live, retry. Reply: sessions that have expired; ENOENT: ours was taken away.
local function heartbeat(K, A)
  local T, now = K[1], now_ms()
  if call('HEXISTS', T .. 'S', A[1]) == 0 then return ENOENT end
  -- When nobody's heartbeat came through for a while, it was the server that was away (or its clock was
  -- set), and all its clients are as alive as they were: they get that time back.
  local last = tonumber(call('HGET', T .. 'c', 'h')) or now
  if math.abs(now - last) > tonumber(A[2]) / 2 then
    for _, sid in ipairs(call('ZRANGEBYSCORE', T .. 'H', fmt('%.0f', last), '+inf')) do
      call('ZINCRBY', T .. 'H', fmt('%.0f', now - last), sid)
    end
  end
  call('HSET', T .. 'c', 'h', fmt('%.0f', now))
  call('ZADD', T .. 'H', fmt('%.0f', now + tonumber(A[2])), A[1])
  return { 0, unpack(call('ZRANGEBYSCORE', T .. 'H', '-inf', fmt('%.0f', now), 'LIMIT', 0, 10)) }
end

-- dead session, time to live of the claim, retry: 0 when the caller may clean up after it
local function session_claim(K, A)
  local T, now = K[1], now_ms()
  local score = call('ZSCORE', T .. 'H', A[1])
  if not score then return ENOENT end
  if tonumber(score) > now then return EAGAIN end
  call('ZADD', T .. 'H', fmt('%.0f', now + tonumber(A[2])), A[1])
  return { 0 }
end

local function session_close(K, A)
  call('HDEL', K[1] .. 'S', A[1])
  call('ZREM', K[1] .. 'H', A[1])
  return { 0 }
end

local function session_list(K)
  local T, out = K[1], { 0 }
  local all = call('HGETALL', T .. 'S')
  for i = 1, #all, 2 do
    out[#out + 1] = all[i]
    out[#out + 1] = all[i + 1]
    out[#out + 1] = call('ZSCORE', T .. 'H', all[i]) or '0'
  end
  return out
end

-- session, cursor ("0" at first), retry: deletes files that it held open, a few hundred at a time.
-- Reply: the next cursor, "0" when that was all.
local function session_sweep(K, A)
  local T = K[1]
  local page = call('HSCAN', T .. 'o', A[2], 'COUNT', 200)
  local all = page[2]
  for i = 1, #all, 2 do
    if all[i + 1] == A[1] then
      local q = tonumber(all[i], 16)
      local ok, r = pcall(get, T, q) -- a damaged record is left to fsck
      if ok and r and r.nlink == 0 then pcall(destroy, T, q, r) end
      call('HDEL', T .. 'o', all[i])
    end
  end
  if page[1] == '0' then call('DEL', T .. 'r' .. A[1], T .. 'm' .. A[1]) end
  return { 0, page[1] }
end

-- --- garbage: extents on their way out of the live counters

-- Reply: the first item of the list and, for a whole file, some of its windows.
local function garbage_peek(K, A)
  local T = K[1]
  local item = call('LINDEX', T .. 'g', 0)
  if not item then return { 0, '' } end
  if sub(item, 1, 1) == 'B' then return { 0, item } end
  local key, out = T .. 'x' .. sub(item, 2), { 0, item }
  local some, bytes = call('HRANDFIELD', key, 32), 0
  for _, w in ipairs(some) do
    local log = call('HGET', key, w)
    out[#out + 1] = w
    out[#out + 1] = log
    bytes = bytes + #log
    if bytes > 262144 then break end
  end
  return out
end

-- item, bytes of it that were worked off ("B"), number of windows, for each its name, its length and how
-- much of it was worked off, then pairs of pack and stored bytes, retry. Nothing happens unless all is as
-- it was: another client was quicker, or this was sent again.
local function garbage_done(K, A)
  local T, n = K[1], tonumber(A[3])
  local item, key = call('LINDEX', T .. 'g', 0), nil
  if item ~= A[1] then return { 0 } end
  if sub(item, 1, 1) == 'X' then
    key = T .. 'x' .. sub(item, 2)
    for i = 4, 3 + 3 * n, 3 do
      if call('HSTRLEN', key, A[i]) ~= tonumber(A[i + 1]) then return { 0 } end
    end
    for i = 4, 3 + 3 * n, 3 do
      if A[i + 1] == A[i + 2] then
        call('HDEL', key, A[i])
      else
        call('HSET', key, A[i], sub(call('HGET', key, A[i]), tonumber(A[i + 2]) + 1))
      end
    end
    if call('EXISTS', key) == 0 then call('LPOP', T .. 'g') end
  elseif tonumber(A[2]) < #item - 1 then
    call('LSET', T .. 'g', 0, 'B' .. sub(item, tonumber(A[2]) + 2))
  else
    call('LPOP', T .. 'g')
  end
  for i = 4 + 3 * n, #A - 1, 2 do live(T, tonumber(A[i]), -tonumber(A[i + 1])) end
  return { 0 }
end

-- --- operations across shards
--
-- Such an operation is a list of steps, each one call in one shard. The first step leaves an intent
-- (Tt: transaction -> what it is) in the same call in which it changes anything; a step in another
-- shard keeps its result under Ta<transaction>, so that doing it again gives the same answer; the last
-- step removes the intent. Who finds the intent of a dead session runs the same list with the same
-- transaction: what was done is not done twice, what was missing is done now. tx.c has the lists.

-- Seconds a step's result is kept when nobody clears it, which is after a crash only. It must outlive the
-- intent, and that may wait for weeks for the next mount.
local KEEP_S = 60 * 86400

local function applied(T, tx)
  local s = call('GET', T .. 'a' .. tx)
  if not s then return nil end
  local ok, result = pcall(cmsgpack.unpack, s)
  if not ok or (type(result) ~= 'number' and type(result) ~= 'table') then damaged('step ' .. tx) end
  return result
end

local function apply(T, tx, result)
  call('SET', T .. 'a' .. tx, cmsgpack.pack(result), 'EX', KEEP_S)
  return result
end

-- transaction, intent, sequence, mode (+ 65536 * umask), uid, gid, parent shard, parent sequence, now,
-- default ACL of the parent, retry: makes the inode of a directory whose entry is in another shard
local function x_make_dir(K, A)
  local T, q = K[1], tonumber(A[3])
  if call('HEXISTS', T .. 't', A[1]) == 1 then return { 0 } end
  if get(T, q) then return ESTALE end -- see make
  local mode, access = acl.inherit(DIR, A[4] % 65536, floor(A[4] / 65536), A[10])
  local r = { kind = DIR, mode = mode, flags = 0, n = 1, mtime = A[9], ctime = A[9], atime = A[9],
    uid = tonumber(A[5]), gid = tonumber(A[6]), nlink = 2, size = 0, version = 0,
    tail = struct.pack('<I2I6', tonumber(A[7]), tonumber(A[8])) }
  acl.give(T, q, r, access, A[10])
  put(T, q, r)
  usage(T, 1, 0)
  call('HSET', T .. 't', A[1], A[2])
  return { 0 }
end

-- transaction, intent, sequence, now, session, retry: one more name is to come from another shard. A file
-- without a name stays held until x_end.
local function x_link(K, A)
  local T, q = K[1], tonumber(A[3])
  if call('HEXISTS', T .. 't', A[1]) == 1 then return { 0 } end
  local r = get(T, q)
  if not r or not may_link(T, q, r, A[5]) then return ENOENT end
  if r.kind == DIR or r.flags >= IMMUTABLE then return EPERM end
  if r.nlink >= LINK_MAX then return EMLINK end
  r.nlink, r.ctime = r.nlink + 1, A[4]
  put(T, q, r)
  call('HSET', T .. 't', A[1], A[2])
  return { 0 }
end

-- transaction, sequence, ok, now, retry: ends x_make_dir or x_link; not ok takes it back
local function x_end(K, A)
  local T, q = K[1], tonumber(A[2])
  if call('HDEL', T .. 't', A[1]) == 0 or A[3] == '1' then
    local r, s = get(T, q)
    if r and r.kind == REG and has_flag(r, LEASED) and r.nlink > 0 then
      got_name(T, q, r)
      s = put(T, q, r)
    end
    return { 0, s or '' }
  end
  local r = get(T, q)
  if r and r.kind == DIR then
    destroy(T, q, r)
  elseif r then
    drop_link(T, q, r, r.kind == REG and has_flag(r, LEASED) and call('HGET', T .. 'o', hex(q)) or '', A[4])
  end
  return { 0, '' }
end

-- transaction, dir, name, type, shard, sequence, now, fill, session, retry
local function x_add_entry(K, A)
  local T, tx, q, name = K[1], A[1], tonumber(A[2]), A[3]
  local done = applied(T, tx)
  if done then return done end
  local d, e = get_dir(T, q)
  if not d then return apply(T, tx, e) end
  if has_flag(d, IMMUTABLE) then return apply(T, tx, EPERM) end
  local _, busy = lease(T, q, d, A[9], false)
  if busy then return EAGAIN end
  local key = dentry_key(T, q, d.n, name)
  if call('HEXISTS', key, name) == 1 then return apply(T, tx, EEXIST) end
  local kind = tonumber(A[4])
  call('HSET', key, name, entry_of(kind, tonumber(A[5]), tonumber(A[6]), T))
  touch_dir(T, q, d, 1, kind == DIR and 1 or 0, A[7], tonumber(A[8]))
  return apply(T, tx, { 0 })
end

-- transaction, sequence, keep, now, retry: takes a name away whose entry was in another shard
local function x_drop(K, A)
  local T, q = K[1], tonumber(A[2])
  local done = applied(T, A[1])
  if done then return done end
  local r = get(T, q)
  return apply(T, A[1], r and { 0, drop_link(T, q, r, A[3], A[4]) } or { 0, '' })
end

-- transaction, retry
local function x_forget(K, A) -- the intent
  call('HDEL', K[1] .. 't', A[1])
  return { 0 }
end

local function x_clear(K, A) -- the result of a step
  call('DEL', K[1] .. 'a' .. A[1])
  return { 0 }
end

local function x_intents(K)
  local all = call('HGETALL', K[1] .. 't') -- may be too many for unpack()
  table.insert(all, 1, 0)
  return all
end

-- transaction, intent, dir, name, retry: marks an entry as being moved or removed by this transaction
local function x_mark(K, A)
  local T, q, name = K[1], tonumber(A[3]), A[4]
  local d, e = get_dir(T, q)
  if not d then return e end
  local key = dentry_key(T, q, d.n, name)
  local entry = call('HGET', key, name)
  if not entry then return ENOENT end
  local kind, shard, iq, moving = entry_get(entry)
  if not kind then damaged_entry(T, q, name) end
  if moving then
    if call('HEXISTS', T .. 't', A[1]) == 1 then return { 0, entry } end
    return EAGAIN
  end
  local r = not shard and get(T, iq)
  if d.flags >= IMMUTABLE or (r and r.flags >= IMMUTABLE) then return EPERM end
  call('HSET', key, name, char(byte(entry, 1) + 128) .. sub(entry, 2))
  call('HSET', T .. 't', A[1], A[2])
  return { 0, entry }
end

-- transaction, sequence, retry: the directory goes if it is empty
local function x_rmdir(K, A)
  local T, q = K[1], tonumber(A[2])
  local done = applied(T, A[1])
  if done then return done end
  local r = get(T, q)
  if r and r.flags >= IMMUTABLE then return apply(T, A[1], EPERM) end
  if r and r.size > 0 then return apply(T, A[1], ENOTEMPTY) end
  if r then destroy(T, q, r) end
  return apply(T, A[1], { 0 })
end

-- transaction, dir, name, ok, now, fill, retry: removes the marked entry, or takes the mark off
local function x_unmark(K, A)
  local T, q, name = K[1], tonumber(A[2]), A[3]
  if call('HDEL', T .. 't', A[1]) == 0 then return { 0 } end
  local d = get_dir(T, q)
  local key = d and dentry_key(T, q, d.n, name)
  local entry = d and call('HGET', key, name)
  if not entry or (byte(entry, 1) or 0) < 128 then return { 0 } end
  local clean = char(byte(entry, 1) - 128) .. sub(entry, 2)
  if A[4] == '1' then
    call('HDEL', key, name)
    touch_dir(T, q, d, -1, entry_get(clean) == DIR and -1 or 0, A[5], tonumber(A[6]))
  else
    call('HSET', key, name, clean)
  end
  return { 0 }
end

-- transaction, dir, name, type, shard, sequence, flags, keep, gone (entry of a directory that this
-- transaction has removed, or ""), now, fill, transaction for a file replaced elsewhere, session, checked
-- (see unlink), retry. Puts the moved entry in place. Reply: 0 or 1 (an intent for the replaced file was
-- left), replaced entry, its record; 3, entry in the way: it must be checked.
local function x_insert(K, A)
  local T, tx, q, name, kind = K[1], A[1], tonumber(A[2]), A[3], tonumber(A[4])
  local done = applied(T, tx)
  if done then return done end
  local d, e = get_dir(T, q)
  if not d then return apply(T, tx, e) end
  local _, busy = lease(T, q, d, A[13], false)
  if busy then return EAGAIN end
  local key = dentry_key(T, q, d.n, name)
  local dst, ds, code = call('HGET', key, name), '', 0
  local entry = entry_of(kind, tonumber(A[5]), tonumber(A[6]), T)
  if has_flag(d, IMMUTABLE) or (dst and d.flags >= IMMUTABLE) then return apply(T, tx, EPERM) end
  if dst then
    local dkind, dshard, dq, moving = entry_get(dst)
    if not dkind then damaged_entry(T, q, name) end
    if moving then return EAGAIN end
    if A[7] == '1' then return apply(T, tx, EEXIST) end
    if kind == DIR and dkind ~= DIR then return apply(T, tx, ENOTDIR) end
    if kind ~= DIR and dkind == DIR then return apply(T, tx, EISDIR) end
    if dkind == DIR and dst ~= A[9] then return EAGAIN end
    if dst == entry then
      return apply(T, tx, { 2, '', '' }) -- two names of one file: nothing to do
    end
    if dkind ~= DIR and dshard then
      if A[14] ~= dst then return { 3, dst, '' } end
      code = 1
      call('HSET', T .. 't', A[12], 'U' .. dst)
    elseif dkind ~= DIR then
      local r = get(T, dq)
      if r and r.flags >= IMMUTABLE then return apply(T, tx, EPERM) end
      if r then ds = drop_link(T, dq, r, A[8], A[10]) end
    end
  end
  call('HSET', key, name, entry)
  local was_dir = dst and kind == DIR and 1 or 0
  touch_dir(T, q, d, dst and 0 or 1, (kind == DIR and 1 or 0) - was_dir, A[10], tonumber(A[11]))
  return apply(T, tx, { code, dst or '', ds })
end

-- sequence, parent shard ("" for files), parent sequence, now, retry: a moved inode's parent and time
local function x_moved(K, A)
  local T, q = K[1], tonumber(A[1])
  local r = get(T, q)
  if not r then return ENOENT end
  if r.kind == DIR then r.tail = struct.pack('<I2I6', tonumber(A[2]), tonumber(A[3])) end
  r.ctime = A[4]
  return { 0, put(T, q, r) }
end

-- session, time to live (ms), retry: the lock that renames of directories across shards take
local function x_lock(K, A)
  local key = K[1] .. 'L'
  local holder = call('GET', key)
  if holder and holder ~= A[1] then return EAGAIN end
  call('SET', key, A[1], 'PX', A[2])
  return { 0 }
end

local function x_unlock(K, A)
  if call('GET', K[1] .. 'L') == A[1] then call('DEL', K[1] .. 'L') end
  return { 0 }
end

-- --- registration

local function ready()
  call, sha1hex, floor = redis.call, redis.sha1hex, math.floor
  byte, char, sub, fmt = string.byte, string.char, string.sub, string.format
end

local function register(flags, functions)
  for i = 1, #functions, 2 do
    local f = functions[i + 1]
    local function run(K, A)
      if not call then ready() end
      return f(K, A)
    end
    redis.register_function({ function_name = 'silt1_' .. functions[i], callback = run,
      flags = flags })
  end
end

register({ 'no-writes' }, { 'lookup', lookup, 'getattr', getattr, 'readlink', readlink, 'window', window,
  'windows', windows, 'readdir', readdir, 'statfs', statfs, 'session_list', session_list,
  'garbage_peek', garbage_peek, 'x_intents', x_intents, 'getxattr', xattr.get, 'listxattr', xattr.list,
  'cover', cover })

register({}, { 'make', make, 'link', link, 'commit', commit, 'alloc', alloc, 'format', format,
  'format_note', format_note, 'x_make_dir', x_make_dir, 'x_link', x_link,
  'x_add_entry', x_add_entry, 'setxattr', xattr.set })

-- A full Redis must not stop what makes room, ends something half-done, or keeps a session alive.
register({ 'allow-oom' }, { 'setattr', setattr, 'unlink', unlink, 'rmdir', rmdir, 'rename', rename,
  'release', release, 'session_open', session_open, 'heartbeat', heartbeat, 'session_claim', session_claim,
  'session_close', session_close, 'session_sweep', session_sweep, 'garbage_done', garbage_done,
  'x_end', x_end, 'x_drop', x_drop, 'x_forget', x_forget, 'x_clear', x_clear, 'x_mark', x_mark,
  'x_rmdir', x_rmdir, 'x_unmark', x_unmark, 'x_insert', x_insert, 'x_moved', x_moved, 'x_lock', x_lock,
  'x_unlock', x_unlock, 'removexattr', xattr.remove, 'set_flags', xattr.set_flags })

register({ 'no-writes' }, { 'next_window', data.next_window })
register({}, { 'tmpfile', data.tmpfile, 'clone', data.clone, 'append', data.append, 'touch', data.touch })
register({ 'allow-oom' }, { 'allocate', data.allocate })
register({ 'no-writes' }, { 'lock_get', locks.lock_get, 'lock_blockers', locks.lock_blockers })
register({ 'allow-oom' }, { 'lock_set', locks.lock_set, 'lock_cancel', locks.lock_cancel,
  'lock_wake', locks.lock_wake, 'lock_sweep', locks.lock_sweep, 'lock_place', locks.lock_place,
  'lock_unplace', locks.lock_unplace })
