
-- Directory q's record, the key of its bucket for `name`, and the entry there (false: none); or nil
-- and, in place of the key, an error.
local function find_entry(T, q, name)
  local d, e = get_dir(T, q)
  if not d then return nil, e end
  local key = dentry_key(T, q, d.n, name)
  return d, key, call('HGET', key, name)
end

-- What a request that is sent again (`retry` "1") was answered, as answered() says it.
local function answered_before(T, id, retry)
  if retry == '1' then return answered(T, id) end
end

-- --- reading

-- Reply: 0 (ENOENT: no such name), the number of the directory's buckets, as who remembers the answer must
-- know in which of them it was, the entry, and the inode's record if it is in this shard.
local function lookup(K, A)
  local T, q, name = K[1], tonumber(A[1]), A[2]
  local d, key, entry = find_entry(T, q, name)
  if not d then return key end
  if not entry then return { ENOENT, d.n } end
  local kind, shard, iq = entry_get(entry)
  if shard or not kind then return { 0, d.n, entry, '' } end -- a damaged one is for the client to name
  local key, field = inode_key(T, iq)
  return { 0, d.n, entry, call('HGET', key, field) or '' }
end

local function getattr(K, A)
  local key, field = inode_key(K[1], tonumber(A[1]))
  local s = call('HGET', key, field)
  if not s then return ENOENT end
  return { 0, s }
end

local function readlink(K, A)
  local T, q = K[1], tonumber(A[1])
  local r = get(T, q)
  if not r then return ENOENT end
  if r.kind ~= LNK then return EINVAL end
  if byte(r.tail, 1) == 0 then return { 0, sub(r.tail, 2) } end
  return { 0, call('GET', T .. 'y' .. hex(q)) or damaged('link target ' .. fmt('%.0f', q)) }
end

local function window(K, A)
  return { 0, call('HGET', K[1] .. 'x' .. hex(tonumber(A[1])), A[2]) or '' }
end

-- inode, cursor ("0" at first). Reply: the next cursor ("0": that was all), then window, log, ...: some
-- of the windows that there are. One may come twice; those that stay throughout come all.
local function windows(K, A)
  local page = call('HSCAN', K[1] .. 'x' .. hex(tonumber(A[1])), A[2], 'COUNT', 50)
  return { 0, page[1], unpack(page[2]) }
end

-- A page: whole buckets from the one that holds place A[2] on, until A[3] entries are there. Reply: 0, the
-- place where the next page begins ('': that was all), the number of the directory's buckets, and name,
-- entry and record of each.
local function readdir(K, A)
  local T, q, place, want, attrs = K[1], tonumber(A[1]), tonumber(A[2]), tonumber(A[3]), A[4] == '1'
  local d, e = get_dir(T, q)
  if not d then return e end
  local out, count, buckets = { 0, '', d.n }, 0, 0
  repeat
    local start, width = bucket_of(d.n, place)
    local all = call('HGETALL', bucket_key(T, q, start))
    for i = 1, #all, 2 do
      local n = #out
      out[n + 1], out[n + 2], out[n + 3] = all[i], all[i + 1], ''
      if attrs then
        local kind, shard, iq = entry_get(all[i + 1])
        if kind and not shard then
          local key, field = inode_key(T, iq)
          out[n + 3] = call('HGET', key, field) or ''
        end
      end
    end
    count = count + #all / 2
    place = start + width
    buckets = buckets + 1 -- a damaged number of buckets must not keep Redis busy
  until count >= want or place >= 4503599627370496 or buckets >= 1000
  out[2] = place >= 4503599627370496 and '' or fmt('%.0f', place)
  return out
end

-- Keys of buckets follow the shard's. For each of them: "*", or how many fields and those fields.
-- Reply: 0, and for each all fields and values, or the values. Redis before 7.2 watches for its client (CLIENT
-- TRACKING) the keys that the call names, later ones what it reads: these are both.
local function cover(K, A)
  local out, p = { 0 }, 1
  for i = 2, #K do
    local n = A[p]
    if n == '*' then
      out[i] = call('HGETALL', K[i])
    elseif tonumber(n) > 0 then
      out[i] = call('HMGET', K[i], unpack(A, p + 1, p + tonumber(n)))
      p = p + tonumber(n)
    else
      call('EXISTS', K[i])
      out[i] = {}
    end
    p = p + 1
  end
  return out
end

local function statfs(K, A)
  local c = call('HMGET', K[1] .. 'c', 'i', 'b')
  return { 0, c[1] or '0', c[2] or '0' }
end

-- --- writing

-- dir, name, new sequence, mode (+ 65536 * umask), uid, gid, now, tail, long target, open_existing, fill, session, lease
-- wanted, retry. Reply: 0 made or 1 existed, entry, record, the directory's record,
-- for how many ms it is leased (see lease()). ESTALE: the sequence is in use (Redis has lost its last
-- second and gave the number out again).
local function make(K, A)
  local T, q, name, iq = K[1], tonumber(A[1]), A[2], tonumber(A[3])
  local now, fill = A[7], tonumber(A[11])
  local d, key, entry = find_entry(T, q, name)
  if not d then return key end
  local again = A[14] == '1' and has_made(T, A[12], iq) -- whatever became of the name since
  if entry and not again then
    local okind, shard, oq = entry_get(entry)
    local s = ''
    if okind and not shard then
      local k, f = inode_key(T, oq)
      s = call('HGET', k, f) or ''
      if oq == iq then return { 0, entry, s } end -- sent again: we made it
    end
    return { A[10] == '1' and 1 or EEXIST, entry, s }
  end
  local ikey, ifield = inode_key(T, iq)
  if call('HEXISTS', ikey, ifield) == 1 then
    local r, s = get(T, iq)
    -- Without a session: it is what we made if its first time is ours.
    if again or (A[14] == '1' and r.atime == now) then
      return { 0, entry_of(r.kind, shard_of(T), iq, T), s }
    end
    return ESTALE
  end
  local mode, umask, gid = A[4] % 65536, floor(A[4] / 65536), tonumber(A[6])
  local kind = TYPE_OF[floor(mode / 4096)]
  if not kind then return EINVAL end
  if has_flag(d, IMMUTABLE) and not again then return EPERM end
  if kind == DIR and d.nlink >= LINK_MAX * 1000 then return EMLINK end
  local default, access = acl.default_of(T, q, d), nil
  mode, access = acl.inherit(kind, mode, umask, default)
  if floor(d.mode / 1024) % 2 == 1 then
    gid = d.gid
    if kind == DIR and floor(mode / 1024) % 2 == 0 then mode = mode + 1024 end
  end
  local r = { kind = kind, mode = mode, flags = 0, mtime = now, ctime = now, atime = now,
    uid = tonumber(A[5]), gid = gid, nlink = 1, size = 0, version = 0, tail = A[8] }
  if kind == DIR then
    r.n, r.nlink = 1, 2
    r.tail = struct.pack('<I2I6', shard_of(T), q)
  elseif kind == LNK then
    r.size = A[9] == '' and #A[8] - 1 or #A[9]
  end
  entry = entry_of(kind, shard_of(T), iq, T)
  if again then return { 0, entry, build(r) } end -- somebody has removed it
  local granted, busy = lease(T, q, d, A[12], A[13] == '1') -- from here on nothing fails: it must be told
  if busy then return EAGAIN end
  if A[9] ~= '' then call('SET', T .. 'y' .. hex(iq), A[9]) end
  acl.give(T, iq, r, access, default)
  local s = build(r)
  call('HSET', ikey, ifield, s)
  call('HSET', key, name, entry)
  remember_made(T, A[12], iq)
  local ds = touch_dir(T, q, d, 1, kind == DIR and 1 or 0, now, fill)
  usage(T, 1, 0)
  return { 0, entry, s, ds, granted }
end

-- inode, what, mode, uid, gid, size, atime, mtime, ctime, now, transaction, retry. Reply: 0, record; 1,
-- record: it is larger than asked for still, ask again (see truncate_windows)
local function setattr(K, A)
  local T, q, set, code = K[1], tonumber(A[1]), tonumber(A[2]), 0
  local before, certain = answered_before(T, A[11], A[12])
  if before then return before end
  local r, s = get(T, q)
  if not r then return ENOENT end
  -- Sent again, and so many later ones were executed that its reply is gone: then it was, too.
  if A[12] == '1' and not certain and request_of(T, A[11]) then return { 0, s } end
  local function has(b) return floor(set / b) % 2 == 1 end
  if has_flag(r, IMMUTABLE) then return EPERM end
  if has_flag(r, APPEND) then -- no change but "now"
    if set % 16 > 0 or (has(16) and A[7] ~= A[10]) or (has(32) and A[8] ~= A[10]) then return EPERM end
  end
  if has(8) then
    if r.kind == DIR then return EISDIR end
    if r.kind ~= REG then return EINVAL end
    local size = tonumber(A[6])
    if resize(T, q, r, size) > size then code = 1 end
    r.version = r.version + 1
    r.mtime = A[10]
  end
  if has(128) and r.kind ~= DIR then r.mode = drop_suid(r.mode) end
  if has(8) or has(128) then xattr.kill_capability(T, q, r) end
  if has(1) then
    r.mode = floor(r.mode / 4096) * 4096 + tonumber(A[3]) % 4096
    acl.chmod(T, q, r)
  end
  if has(2) then r.uid = tonumber(A[4]) end
  if has(4) then r.gid = tonumber(A[5]) end
  if has(16) then r.atime = A[7] end
  if has(32) then r.mtime = A[8] end
  r.ctime = has(64) and A[9] or A[10]
  return remember(T, A[11], { code, put(T, q, r) })
end

-- A file whose last name is gone stays without; one that never had a name (tmpfile) gets its first from the
-- session that holds it.
local function may_link(T, q, r, session)
  return r.nlink > 0 or (r.kind == REG and has_flag(r, LEASED) and call('HGET', T .. 'o', hex(q)) == session)
end

local function got_name(T, q, r) -- changes r only
  set_flag(r, LEASED, false)
  call('HDEL', T .. 'o', hex(q))
end

-- inode, dir, name, now, fill, session, transaction, retry. Reply: 0, record, the directory's record.
local function link(K, A)
  local T, iq, q, name, now = K[1], tonumber(A[1]), tonumber(A[2]), A[3], A[4]
  local before, certain = answered_before(T, A[7], A[8])
  if before then return before end
  local r, s = get(T, iq)
  if not r then return ENOENT end
  if r.kind == DIR or r.flags >= IMMUTABLE then return EPERM end
  local d, e = get_dir(T, q)
  if not d then return e end
  if has_flag(d, IMMUTABLE) then return EPERM end
  local _, busy = lease(T, q, d, A[6], false)
  if busy then return EAGAIN end
  local key = dentry_key(T, q, d.n, name)
  local old = call('HGET', key, name)
  if old then
    local _, shard, oq = entry_get(old)
    if A[8] == '1' and not certain and not shard and oq == iq then return { 0, s, '' } end
    return EEXIST
  end
  if r.nlink >= LINK_MAX then return EMLINK end
  if not may_link(T, iq, r, A[6]) then return ENOENT end
  if r.nlink == 0 then got_name(T, iq, r) end
  r.nlink, r.ctime = r.nlink + 1, now
  s = put(T, iq, r)
  call('HSET', key, name, entry_of(r.kind, shard_of(T), iq, T))
  local ds = touch_dir(T, q, d, 1, 0, now, tonumber(A[5]))
  remember(T, A[7], { 0, s, '' })
  return { 0, s, ds }
end

-- dir, name, session that keeps it open or "", now, fill, transaction, checked, retry. A damaged entry
-- goes, and no inode is touched.
-- Reply 0, entry, record afterwards, the directory's record; 1, entry, "", that: the inode is
-- elsewhere, an intent was left; 2, entry: nothing was done, the inode is elsewhere and the caller must
-- see first that it may go (its flags), then call again with that entry as `checked`.
local function unlink(K, A)
  local T, q, name, now = K[1], tonumber(A[1]), A[2], A[4]
  local before, certain = answered_before(T, A[6], A[8])
  if before then return before end
  local d, key, entry = find_entry(T, q, name)
  if not d then return key end
  if not entry then return A[8] == '1' and not certain and { 0, '', '' } or ENOENT end
  local kind, shard, iq, moving = entry_get(entry)
  if kind == DIR then return EISDIR end
  if moving then return EAGAIN end
  if d.flags >= IMMUTABLE then return EPERM end
  if not kind then
    call('HDEL', key, name)
    local was_dir = (byte(entry, 1) or 0) % 16 == DIR and d.nlink > 2
    local ds = touch_dir(T, q, d, -1, was_dir and -1 or 0, now, tonumber(A[5]))
    return remember(T, A[6], { 0, entry, '', ds })
  end
  if shard and A[7] ~= entry then return { 2, entry } end
  local code, s = 0, ''
  if shard then
    if not fence.passes(T, A[6]) then return EAGAIN end
    code = 1
    call('HSET', T .. 't', A[6], 'U' .. entry)
  else
    local r = get(T, iq)
    if r and r.flags >= IMMUTABLE then return EPERM end
    if r then s = drop_link(T, iq, r, A[3], now) end
  end
  call('HDEL', key, name)
  local ds = touch_dir(T, q, d, -1, 0, now, tonumber(A[5]))
  remember(T, A[6], { code, entry, s })
  return { code, entry, s, ds }
end

-- dir, name, now, fill, transaction, retry. Reply: 0, the directory's record.
local function rmdir(K, A)
  local T, q, name, now = K[1], tonumber(A[1]), A[2], A[3]
  local before, certain = answered_before(T, A[5], A[6])
  if before then return before end
  local d, key, entry = find_entry(T, q, name)
  if not d then return key end
  if not entry then return A[6] == '1' and not certain and { 0 } or ENOENT end
  local kind, shard, iq, moving = entry_get(entry)
  if not kind then damaged_entry(T, q, name) end
  if kind ~= DIR then return ENOTDIR end
  if moving then return EAGAIN end
  if d.flags >= IMMUTABLE then return EPERM end
  if shard then return EXDEV end
  local r = get(T, iq)
  if r and r.flags >= IMMUTABLE then return EPERM end
  if r and r.size > 0 then return ENOTEMPTY end
  if r then destroy(T, iq, r) end
  call('HDEL', key, name)
  local ds = touch_dir(T, q, d, -1, -1, now, tonumber(A[4]))
  remember(T, A[5], { 0 })
  return { 0, ds }
end

local function is_below(T, q, top) -- is directory q the directory top, or below it?
  for _ = 1, 10000 do
    if q == top then return true end
    local d = get(T, q)
    if not d or q == 1 then return false end
    if d.kind ~= DIR then damaged('parent of a directory: ' .. shard_of(T) .. ':' .. fmt('%.0f', q)) end
    local shard, parent = struct.unpack('<I2I6', d.tail)
    if shard ~= shard_of(T) then return false end -- the client forbade that case
    q = parent
  end
  return true
end

-- from dir, name, to dir, name, flags (1 noreplace 2 exchange), keep, now, fill, transaction,
-- many shards, session, checked, retry. Reply: code (3: two names of one file, nothing happens), moved entry,
-- moved record, replaced entry, replaced record, an exchange's other entry if its inode is elsewhere: who
-- calls gives inodes elsewhere their change time (x.moved); or 2, entries: as with unlink, of what moves and
-- what is replaced ("": not elsewhere); both together are `checked`.
local function rename(K, A)
  local T, fq, from, tq, to = K[1], tonumber(A[1]), A[2], tonumber(A[3]), A[4]
  local flags, now, fill = tonumber(A[5]), A[7], tonumber(A[8])
  local before, certain = answered_before(T, A[9], A[13])
  if before then return before end
  local fd, e = get_dir(T, fq)
  if not fd then return e end
  local td = fd
  if tq ~= fq then
    td, e = get_dir(T, tq)
    if not td then return e end
  end
  local _, busy = lease(T, tq, td, A[11], false)
  if not busy and flags == 2 and tq ~= fq then _, busy = lease(T, fq, fd, A[11], false) end
  if busy then return EAGAIN end
  local fkey, tkey = dentry_key(T, fq, fd.n, from), dentry_key(T, tq, td.n, to)
  local src, dst = call('HGET', fkey, from), call('HGET', tkey, to)
  if not src then
    if A[13] ~= '1' or certain or not dst then return ENOENT end
    local kind, shard, iq = entry_get(dst)
    if not kind then damaged_entry(T, tq, to) end
    local r = not shard and get(T, iq)
    return { 0, dst, r and build(r) or '', '', '' }
  end
  local skind, sshard, sq, smoving = entry_get(src)
  local dkind, dshard, dq, dmoving
  if dst then dkind, dshard, dq, dmoving = entry_get(dst) end
  if not skind then damaged_entry(T, fq, from) end
  if dst and not dkind then damaged_entry(T, tq, to) end
  if smoving or dmoving then return EAGAIN end
  if dst and flags == 1 then return EEXIST end
  if not dst and flags == 2 then return ENOENT end
  local sr = not sshard and get(T, sq) or nil
  if dst and sshard == dshard and sq == dq then return { 3, src, sr and build(sr) or '', '', '' } end
  if fq ~= tq and (skind == DIR or (flags == 2 and dkind == DIR)) then
    if A[10] == '1' then return EXDEV end
    if skind == DIR and is_below(T, tq, sq) then return EINVAL end
    if flags == 2 and dkind == DIR and is_below(T, fq, dq) then return EINVAL end
  end
  local code, ds = 0, ''
  local dr = dst and not dshard and get(T, dq) or nil
  if fd.flags >= IMMUTABLE or has_flag(td, IMMUTABLE) or (dst and td.flags >= IMMUTABLE) or
    (sr and sr.flags >= IMMUTABLE) or (dr and dr.flags >= IMMUTABLE) then return EPERM end
  local selse, delse = sshard and src or '', dshard and dst or ''
  if selse .. delse ~= A[12] then return { 2, selse, delse } end
  if dst and flags ~= 2 then
    if skind == DIR and dkind ~= DIR then return ENOTDIR end
    if skind ~= DIR and dkind == DIR then return EISDIR end
    if dkind == DIR and dshard then return EXDEV end
    if dkind == DIR and dr and dr.size > 0 then return ENOTEMPTY end
    if dkind == DIR then
      if dr then destroy(T, dq, dr) end
    elseif dshard then
      if not fence.passes(T, A[9]) then return EAGAIN end
      code = 1
      call('HSET', T .. 't', A[9], 'U' .. dst)
    elseif dr then
      ds = drop_link(T, dq, dr, A[6], now)
    end
  end
  local function moved(q, r, kind, dir)
    if not r then return '' end
    r.ctime = now
    if kind == DIR then r.tail = struct.pack('<I2I6', shard_of(T), dir) end
    return put(T, q, r)
  end
  local ss = moved(sq, sr, skind, tq)
  call('HSET', tkey, to, src)
  local sdir = skind == DIR and 1 or 0
  local ddir = dst and dkind == DIR and 1 or 0
  if flags == 2 then
    moved(dq, dr, dkind, fq)
    call('HSET', fkey, from, dst)
    if fq == tq then
      touch_dir(T, fq, fd, 0, 0, now, fill)
    else
      touch_dir(T, fq, fd, 0, ddir - sdir, now, fill)
      touch_dir(T, tq, td, 0, sdir - ddir, now, fill)
    end
    return remember(T, A[9], { 0, src, ss, '', '', dshard and dst or '' })
  end
  call('HDEL', fkey, from)
  if fq == tq then
    touch_dir(T, fq, fd, dst and -1 or 0, -ddir, now, fill)
  else
    touch_dir(T, fq, fd, -1, -sdir, now, fill)
    touch_dir(T, tq, td, dst and 0 or 1, sdir - ddir, now, fill)
  end
  return remember(T, A[9], { code, src, ss, dst or '', ds })
end

local function in_log(log, ext) -- is the extent one of the log's?
  local p = 1
  while p <= #log do
    local off, _, _, _, _, _, next_p = extent_at(log, p)
    if not off then return false end
    if sub(log, p, next_p - 1) == ext then return true end
    p = next_p
  end
  return false
end

-- Adds one extent to a file's map. Changes r and, for what it replaces, packs; false if it is there.
local function add_extent(T, q, r, ext, win, packs, again)
  local map = byte(r.tail, 1)
  if map == 0 then
    r.tail = '\1' .. ext
    return true
  end
  if map == 1 then
    if sub(r.tail, 2) == ext then return false end -- sent again
    local off, len, pack, _, stored = inline_extent(T, q, r)
    local noff, nlen = extent_at(ext, 1)
    if noff <= off and noff + nlen >= off + len then
      packs[pack] = (packs[pack] or 0) - stored
      r.tail = '\1' .. ext
      return true
    end
    call('HSET', T .. 'x' .. hex(q), fmt('%.0f', floor(off / WINDOW)), sub(r.tail, 2))
    r.tail = '\2'
  end
  local key = T .. 'x' .. hex(q)
  local log = call('HGET', key, win) or ''
  if #log >= #ext and sub(log, -#ext) == ext then return false end -- sent again
  -- Every extent of data is unique, so it can be looked for; a hole may come twice.
  if again and byte(ext, 1) % 2 == 0 and in_log(log, ext) then return false end
  call('HSET', key, win, log .. ext)
  fold.note(T, q, win, #log, #log + #ext)
  return true
end

-- Applies one item; adds what it stores to packs[pack]. Returns the file's version, or an errno.
local function commit_one(T, q, now, stop, ext, win, pack, stored, packs, again)
  local r = get(T, q)
  if not r or r.kind ~= REG then return ENOENT end
  if has_flag(r, IMMUTABLE) then return EPERM end
  if not packs[pack] and gone(T, pack) then return ESTALE end
  xattr.kill_capability(T, q, r)
  if add_extent(T, q, r, ext, win, packs, again) then
    packs[pack] = (packs[pack] or 0) + stored
    r.version = r.version + 1
  end
  if stop > r.size then
    usage(T, 0, stop - r.size)
    r.size = stop
  end
  r.mtime = time_of_write(r, now)
  r.ctime = later(r.ctime, r.mtime) and r.ctime or r.mtime
  put(T, q, r)
  return r.version
end

-- items of: inode, time of the write, end, extent, window, pack, stored; then transaction, retry. Reply: a version or
-- errno each; a damaged record fails its own item only.
local function commit(K, A)
  local T, out, packs, id, retry = K[1], {}, {}, A[#A - 1], A[#A]
  local before, certain = answered_before(T, id, retry)
  if before then return before end
  for i = 1, #A - 2, 7 do
    local ok, v = pcall(commit_one, T, tonumber(A[i]), A[i + 1], tonumber(A[i + 2]), A[i + 3], A[i + 4],
      tonumber(A[i + 5]), tonumber(A[i + 6]), packs, retry == '1' and not certain)
    out[#out + 1] = ok and v or EIO
  end
  for pack, stored in pairs(packs) do live(T, pack, stored) end
  return remember(T, id, out)
end

-- counter, how many, the highest that the caller knows to be given out (more than the counter says when
-- Redis has lost its last second), retry: the first of the numbers reserved
local function alloc(K, A)
  local n, known = tonumber(A[2]), tonumber(A[3])
  local at = tonumber(call('HGET', K[1] .. 'c', A[1]) or 0)
  if not at then damaged('counter ' .. A[1] .. ' of shard ' .. shard_of(K[1])) end
  if at < known then call('HSET', K[1] .. 'c', A[1], fmt('%.0f', known)) end
  return { 0, fmt('%.0f', next_of(K[1], A[1], n) - n + 1) }
end

-- id (hex): notes it for the volume that is about to be made. Reply: 0, the id; that of an earlier note.
local function format_note(K, A)
  local T = K[1]
  if call('EXISTS', T .. 'v') == 1 then return EEXIST end
  call('SETNX', T .. 'f', A[1])
  return { 0, call('GET', T .. 'f') }
end

-- uid, gid, mode, now, settings: the root directory and the settings, unless there is a volume
local function format(K, A)
  local T = K[1]
  if call('EXISTS', T .. 'v') == 1 then return EEXIST end
  local r = { kind = DIR, mode = tonumber(A[3]), flags = 0, n = 1, mtime = A[4], ctime = A[4], atime = A[4],
    uid = tonumber(A[1]), gid = tonumber(A[2]), nlink = 2, size = 0, version = 0,
    tail = struct.pack('<I2I6', 0, 1) }
  put(T, 1, r)
  call('HSET', T .. 'c', 'n', 1, 'i', 1, 'b', 0)
  call('SET', T .. 'v', A[5])
  call('DEL', T .. 'f')
  return { 0 }
end
