
-- --- operations across shards
--
-- Such an operation is a list of steps, each one call in one shard (tx.c, tx_rename.c have the lists). The
-- first leaves an intent (Tt: transaction -> what it is) in the same call in which it changes anything;
-- the last takes it away. Who finds the intent of a dead session runs the same list with the same
-- transaction: what was done is not done twice, what was missing is done now.
--
-- Any number of clients may be at it together: several that clean up, and the one that began, which was
-- only stopped. What keeps them together:
--
--   - A step but the first and last keeps its result under Ta<transaction>: who comes later gets that.
--   - One step decides whether the operation happens. Who wants to take it back has the decision made
--     first (x.refuse): it may turn out to have been made the other way.
--   - The last step does something only for who takes the intent away.
--   - Before others run the list, they mark the intent as taken ("!" before it). Its end then leaves the
--     first step's reply behind (Ta<transaction>.1), and results are not cleared but run out after
--     KEEP_S, when who was stopped meanwhile has given up. An intent that is not taken has never been
--     seen by others: its client clears all at once.
--   - First steps are refused when the session was taken for dead (fence).

local x = {}

local UNTIL_END_S = 3650 * 86400 -- results outlive their intent, which may wait long for the next mount

local function applied(T, tx)
  local s = call('GET', T .. 'a' .. tx)
  if not s then return nil end
  local ok, result = pcall(cmsgpack.unpack, s)
  if not ok or (type(result) ~= 'number' and type(result) ~= 'table') then damaged('step ' .. tx) end
  return result
end

local function apply(T, tx, result)
  call('SET', T .. 'a' .. tx, cmsgpack.pack(result), 'EX', UNTIL_END_S)
  return result
end

-- Before a first step: what to answer instead of doing it, if so.
local function begun(T, tx, retry)
  if call('HEXISTS', T .. 't', tx) == 1 then return { 0 } end
  local before = retry == '1' and applied(T, tx .. '.1')
  if before then return before end
  if not fence.passes(T, tx) then return EAGAIN end
end

-- Takes the intent away, whose first step was answered `first`. Returns false if there is none, and 0, or
-- 1 if others may have seen it. (`retry`: it is gone because this was done before, or because of them.)
local function ended(T, tx, first, retry)
  local s = call('HGET', T .. 't', tx)
  if not s then return false, retry == '1' and call('EXISTS', T .. 'a' .. tx .. '.1') == 0 and 0 or 1 end
  call('HDEL', T .. 't', tx)
  if byte(s, 1) ~= 33 then return true, 0 end
  call('SET', T .. 'a' .. tx .. '.1', cmsgpack.pack(first), 'EX', KEEP_S)
  return true, 1
end

-- session, number (see session.close), transaction, retry: tells the shard of the session's death, unless
-- it ends by itself, and takes its intents: that of `transaction` and its parts if that is not "".
-- Reply: transaction, intent, ...
function x.take(K, A)
  local T, out = K[1], { 0 }
  if A[2] ~= '' and not fence.fall(T, A[1], tonumber(A[2])) then return ESTALE end
  local all = call('HGETALL', T .. 't')
  for i = 1, #all, 2 do
    local tx, intent = all[i], all[i + 1]
    local mine = string.match(tx, '^%d+') == A[1] and
      (A[3] == '' or tx == A[3] or sub(tx, 1, #A[3] + 1) == A[3] .. '.')
    if mine and byte(intent, 1) == 33 then
      intent = sub(intent, 2)
    elseif mine then
      call('HSET', T .. 't', tx, '!' .. intent)
    end
    if mine then
      out[#out + 1], out[#out + 2] = tx, intent
    end
  end
  return out
end

-- transaction, intent, sequence, mode (+ 65536 * umask), uid, gid, parent shard, parent sequence, now,
-- default ACL of the parent, retry: makes the inode of a directory whose entry is in another shard
function x.make_dir(K, A)
  local T, q = K[1], tonumber(A[3])
  local before = begun(T, A[1], A[11])
  if before then return before end
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
-- without a name stays held until x.finish.
function x.link(K, A)
  local T, q = K[1], tonumber(A[3])
  local before = begun(T, A[1], A[6])
  if before then return before end
  local r = get(T, q)
  if not r or not may_link(T, q, r, A[5]) then return ENOENT end
  if r.kind == DIR or r.flags >= IMMUTABLE then return EPERM end
  if r.nlink >= LINK_MAX then return EMLINK end
  r.nlink, r.ctime = r.nlink + 1, A[4]
  put(T, q, r)
  call('HSET', T .. 't', A[1], A[2])
  return { 0 }
end

-- transaction, sequence, ok, now, retry: ends x.make_dir or x.link; not ok takes it back. Reply: see
-- ended(), record.
function x.finish(K, A)
  local T, q = K[1], tonumber(A[2])
  local mine, code = ended(T, A[1], { 0 }, A[5])
  local r, s = get(T, q)
  local unnamed = r and r.kind == REG and has_flag(r, LEASED)
  if mine and A[3] == '1' and unnamed and r.nlink > 0 then
    got_name(T, q, r)
    s = put(T, q, r)
  end
  if not mine or A[3] == '1' then return { code, s or '' } end
  if r and r.kind == DIR then
    destroy(T, q, r)
  elseif unnamed and call('HEXISTS', T .. 'o', hex(q)) == 1 then
    r.nlink, r.ctime = r.nlink - 1, A[4]
    put(T, q, r)
  elseif r then
    drop_link(T, q, r, '', A[4])
  end
  return { code, '' }
end

-- transaction, dir, name, type, shard, sequence, now, fill, session, retry: decides x.make_dir, x.link
function x.add_entry(K, A)
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
function x.drop(K, A)
  local T, q = K[1], tonumber(A[2])
  local done = applied(T, A[1])
  if done then return done end
  local r = get(T, q)
  return apply(T, A[1], r and { 0, drop_link(T, q, r, A[3], A[4]) } or { 0, '' })
end

-- transaction, retry: its intent is done with. Reply: see ended().
function x.forget(K, A)
  local _, code = ended(K[1], A[1], { 0 }, A[2])
  return { code }
end

-- transaction, whether others may have seen its intent, retry: its result is not needed any more
function x.clear(K, A)
  if A[2] == '1' then
    call('EXPIRE', K[1] .. 'a' .. A[1], KEEP_S)
  else
    call('DEL', K[1] .. 'a' .. A[1])
  end
  return { 0 }
end

local function is_marked(entry)
  return (byte(entry, 1) or 0) >= 128
end

local function marked(entry)
  return char(byte(entry, 1) + 128) .. sub(entry, 2)
end

local function unmarked(entry)
  return is_marked(entry) and char(byte(entry, 1) - 128) .. sub(entry, 2) or entry
end

-- transaction, intent ("": what was begun goes on), dir, name, retry: marks an entry as being moved or
-- removed by this transaction. Reply: entry. ESTALE: it has ended.
function x.mark(K, A)
  local T, tx, q, name = K[1], A[1], tonumber(A[3]), A[4]
  local before = begun(T, tx, A[5])
  if type(before) == 'number' and A[2] == '' then return ESTALE end
  if type(before) == 'number' or (before and before[2]) then return before end
  if not before and A[2] == '' then return ESTALE end
  local d, key, entry = find_entry(T, q, name)
  if not d then return key end
  if not entry then return ENOENT end
  if before then return { 0, entry } end
  local kind, shard, iq, moving = entry_get(entry)
  if not kind then damaged_entry(T, q, name) end
  if moving then return EAGAIN end
  local r = not shard and get(T, iq)
  if d.flags >= IMMUTABLE or (r and r.flags >= IMMUTABLE) then return EPERM end
  call('HSET', key, name, marked(entry))
  call('HSET', T .. 't', tx, A[2])
  return { 0, entry }
end

-- transaction, sequence, retry: the directory goes if it is empty. Decides a removal.
function x.rmdir(K, A)
  local T, q = K[1], tonumber(A[2])
  local done = applied(T, A[1])
  if done then return done end
  local r = get(T, q)
  if r and r.flags >= IMMUTABLE then return apply(T, A[1], EPERM) end
  if r and r.size > 0 then return apply(T, A[1], ENOTEMPTY) end
  if r then destroy(T, q, r) end
  return apply(T, A[1], { 0 })
end

-- transaction, dir, name, what becomes of the marked entry ("0" it stays, "1" it goes, "2" type, shard,
-- sequence take its place), now, fill, type, shard, sequence, retry. Reply: see ended().
function x.unmark(K, A)
  local T, q, name = K[1], tonumber(A[2]), A[3]
  local d = get_dir(T, q)
  local key = d and dentry_key(T, q, d.n, name)
  local entry = d and call('HGET', key, name)
  local clean = entry and unmarked(entry) or ''
  local mine, code = ended(T, A[1], { 0, clean }, A[10])
  if not mine or not entry or not is_marked(entry) then return { code } end
  local was_dir = entry_get(clean) == DIR and 1 or 0
  if A[4] == '1' then
    call('HDEL', key, name)
    touch_dir(T, q, d, -1, -was_dir, A[5], tonumber(A[6]))
  elseif A[4] == '2' then
    local kind = tonumber(A[7])
    call('HSET', key, name, entry_of(kind, tonumber(A[8]), tonumber(A[9]), T))
    touch_dir(T, q, d, 0, (kind == DIR and 1 or 0) - was_dir, A[5], tonumber(A[6]))
  else
    call('HSET', key, name, clean)
  end
  return { code }
end

-- A directory that is to be replaced is marked too, so that its name stays until its inode is gone: Tt has
-- <transaction>.t as long (part of the intent in the source's shard, not found by itself).
local function is_target(T, tx)
  return call('HEXISTS', T .. 't', tx .. '.t') == 1
end

-- transaction, dir, name, type, shard, sequence (of what moves there), retry: marks the directory there.
-- Reply: 0, entry; 1: none has to go, or it was decided; x.insert says which.
function x.aim(K, A)
  local T, tx, q, name = K[1], A[1], tonumber(A[2]), A[3]
  if applied(T, tx) then return { 1 } end
  local d, key, entry = find_entry(T, q, name)
  if not d or not entry then return { 1 } end
  local kind, _, _, moving = entry_get(entry)
  if kind ~= DIR or entry == entry_of(tonumber(A[4]), tonumber(A[5]), tonumber(A[6]), T) then return { 1 } end
  if is_target(T, tx) then return { 0, entry } end
  if moving then return EAGAIN end
  if d.flags >= IMMUTABLE then return { 1 } end
  call('HSET', key, name, marked(entry))
  call('HSET', T .. 't', tx .. '.t', 'T')
  return { 0, entry }
end

-- transaction, errno, dir ("0": nothing can be marked there), name, whether the directory there stays for
-- certain, retry: decides that it does not happen, unless that was decided. Reply: the decision; 4: can't
-- be said as long as nobody knows what became of the directory there.
function x.refuse(K, A)
  local T, tx, q, name = K[1], A[1], tonumber(A[3]), A[4]
  local done = applied(T, tx)
  if done then return done end
  if is_target(T, tx) then
    if A[5] ~= '1' then return { 4 } end
    local ok, d, key, entry = pcall(find_entry, T, q, name)
    if ok and d and entry then call('HSET', key, name, unmarked(entry)) end
    call('HDEL', T .. 't', tx .. '.t')
  end
  return apply(T, tx, tonumber(A[2]))
end

-- transaction, dir, name, type, shard, sequence, flags, keep, gone (entry of a marked directory that this
-- transaction has removed, or ""), now, fill, transaction for a file replaced elsewhere, session, checked
-- (see unlink), retry. Puts the moved entry in place: decides a rename. Reply: 0 or 1 (an intent for the
-- replaced file was left), replaced entry, its record; 2: nothing to do; 3, entry in the way: it must be
-- checked. EAGAIN also: a directory is in the way.
function x.insert(K, A)
  local T, tx, q, name, kind = K[1], A[1], tonumber(A[2]), A[3], tonumber(A[4])
  local done = applied(T, tx)
  if done then return done end
  local d, e = get_dir(T, q)
  if not d then return apply(T, tx, e) end
  local key = dentry_key(T, q, d.n, name)
  local dst, ds, code = call('HGET', key, name), '', 0
  local entry = entry_of(kind, tonumber(A[5]), tonumber(A[6]), T)
  local target = dst and is_target(T, tx)
  if not target then
    local _, busy = lease(T, q, d, A[13], false)
    if busy then return EAGAIN end
    if has_flag(d, IMMUTABLE) or (dst and d.flags >= IMMUTABLE) then return apply(T, tx, EPERM) end
  end
  if target then
    dst = unmarked(dst)
    if dst ~= A[9] then return EAGAIN end
    call('HDEL', T .. 't', tx .. '.t')
  elseif dst then
    local dkind, dshard, dq, moving = entry_get(dst)
    if not dkind then damaged_entry(T, q, name) end
    if moving then return EAGAIN end
    if A[7] == '1' then return apply(T, tx, EEXIST) end
    if kind == DIR and dkind ~= DIR then return apply(T, tx, ENOTDIR) end
    if kind ~= DIR and dkind == DIR then return apply(T, tx, EISDIR) end
    if dst == entry then
      return apply(T, tx, { 2, '', '' }) -- two names of one file: nothing to do
    end
    if dkind == DIR then return EAGAIN end
    if dshard then
      if A[14] ~= dst then return { 3, dst, '' } end
      code = 1
      call('HSET', T .. 't', A[12], 'U' .. dst)
    else
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

-- transaction, dir, name, type, shard, sequence, now, fill, checked (entry that may go from there), retry:
-- puts the moved entry in place of another, which is to take its place. Decides an exchange. Reply: 0,
-- that entry; 2: both are names of one file; 3, entry there: it must be checked.
function x.exchange(K, A)
  local T, tx, q, name, kind = K[1], A[1], tonumber(A[2]), A[3], tonumber(A[4])
  local done = applied(T, tx)
  if done then return done end
  local d, key, dst = find_entry(T, q, name)
  if not d then return apply(T, tx, key) end
  if not dst then return apply(T, tx, ENOENT) end
  local dkind, dshard, dq, moving = entry_get(dst)
  if not dkind then damaged_entry(T, q, name) end
  if moving then return EAGAIN end
  local entry = entry_of(kind, tonumber(A[5]), tonumber(A[6]), T)
  if dst == entry then return apply(T, tx, { 2, '' }) end
  local r = not dshard and get(T, dq)
  if d.flags >= IMMUTABLE or (r and r.flags >= IMMUTABLE) then return apply(T, tx, EPERM) end
  if dst ~= A[9] then return { 3, dst } end
  call('HSET', key, name, entry)
  touch_dir(T, q, d, 0, (kind == DIR and 1 or 0) - (dkind == DIR and 1 or 0), A[7], tonumber(A[8]))
  return apply(T, tx, { 0, dst })
end

-- transaction, sequence, parent shard, parent sequence, now, retry: a moved directory's parent and time;
-- without a transaction (""), and of a file, the time
function x.moved(K, A)
  local T, q = K[1], tonumber(A[2])
  local r, s = get(T, q)
  if not r then return ENOENT end
  if A[1] == '' and later(r.ctime, A[5]) then return { 0, s } end
  if r.kind == DIR and A[1] ~= '' then
    if applied(T, A[1]) then return { 0, s } end
    apply(T, A[1], { 0 })
    r.tail = struct.pack('<I2I6', tonumber(A[3]), tonumber(A[4]))
  end
  r.ctime = A[5]
  return { 0, put(T, q, r) }
end

-- transaction, retry: the lock that a move of a directory to another one takes, in shard 0. It does not run
-- out: its holder's steps could come late. It goes when the transaction is complete, whoever does that, or
-- with the session. ESTALE: the session was taken for dead.
function x.lock(K, A)
  local key = K[1] .. 'L'
  local holder = call('GET', key)
  if holder == A[1] then return { 0 } end
  if not fence.passes(K[1], A[1]) then return ESTALE end
  if holder then return EAGAIN end
  call('SET', key, A[1])
  return { 0 }
end

function x.unlock(K, A)
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
  'windows', windows, 'readdir', readdir, 'statfs', statfs, 'session_list', session.list,
  'garbage_peek', garbage_peek, 'fold_list', fold.list, 'limits', scan.limits, 'inodes', scan.inodes, 'live', scan.live, 'garbage', scan.garbage,
  'noted_packs', compact.list, 'extents', compact.extents, 'dictionary', dictionary.current, 'dead_packs', dead.list, 'count_packs', dead.count, 'getxattr', xattr.get, 'listxattr', xattr.list,
  'cover', cover })

register({}, { 'make', make, 'link', link, 'commit', commit, 'alloc', alloc, 'format', format,
  'format_note', format_note, 'x_make_dir', x.make_dir, 'x_link', x.link,
  'x_add_entry', x.add_entry, 'setxattr', xattr.set })

-- A full Redis must not stop what makes room, ends something half-done, or keeps a session alive.
register({ 'allow-oom' }, { 'setattr', setattr, 'unlink', unlink, 'rmdir', rmdir, 'rename', rename,
  'release', held.release, 'hold', held.hold, 'seen', held.seen, 'session_open', session.open, 'session_back', session.back, 'heartbeat', session.beat,
  'session_claim', session.claim, 'session_close', session.close, 'session_sweep', session.sweep,
  'garbage_done', garbage_done, 'fold', fold.apply, 'worker', dead.worker, 'resign', dead.resign,
  'fix_inode', scan.fix_inode, 'drop_inode', scan.drop_inode,
  'fix_usage', scan.fix_usage, 'fix_live', scan.fix_live, 'exclude', session.exclude, 'bury', dead.bury, 'exhume', dead.exhume, 'forget_packs', dead.forget,
  'forget_noted', compact.forget, 'move', compact.move, 'move_log', compact.move_log,
  'dictionary_new', dictionary.new, 'dictionary_use', dictionary.use, 'take', x.take,
  'x_end', x.finish, 'x_drop', x.drop, 'x_forget', x.forget, 'x_clear', x.clear, 'x_mark', x.mark,
  'x_rmdir', x.rmdir, 'x_unmark', x.unmark, 'x_aim', x.aim, 'x_refuse', x.refuse, 'x_insert', x.insert,
  'x_exchange', x.exchange, 'x_moved', x.moved, 'x_lock', x.lock,
  'x_unlock', x.unlock, 'removexattr', xattr.remove, 'set_flags', xattr.set_flags })

register({ 'no-writes' }, { 'next_window', data.next_window, 'deleted', held.list })
register({}, { 'tmpfile', data.tmpfile, 'clone', data.clone, 'append', data.append, 'touch', data.touch })
register({ 'allow-oom' }, { 'allocate', data.allocate })
register({ 'no-writes' }, { 'lock_get', locks.lock_get, 'lock_blockers', locks.lock_blockers })
register({ 'allow-oom' }, { 'lock_set', locks.lock_set, 'lock_cancel', locks.lock_cancel,
  'lock_wake', locks.lock_wake, 'lock_sweep', locks.lock_sweep, 'lock_place', locks.lock_place,
  'lock_unplace', locks.lock_unplace })
