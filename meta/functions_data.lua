
-- --- data: files without a name, holes, shared extents, appends, access times
--
-- Live bytes: an entry of a file's map counts with all bytes stored of its run, however little of it
-- still shows, from the call that writes it to the one that takes it out (or that works it off as
-- garbage). So a run that two files share, or one file twice, counts twice, and a clipped extent keeps
-- its `stored`. A pack in Tz may have come to life again since: who deletes packs looks at all shards'
-- counters once more, and not before what was being shared then has been committed.

local data = {}
local EFBIG = -27

-- dir, new sequence, mode (+ 65536 * umask), uid, gid, now, session, linkable, retry: a file that has no
-- name, for as long as the session holds it. The flag LEASED of its record says that it may get its first
-- name.
function data.tmpfile(K, A)
  local T, q, iq, now = K[1], tonumber(A[1]), tonumber(A[2]), A[6]
  local d, e = get_dir(T, q)
  if not d then return e end
  local there, s = get(T, iq)
  if there then
    if A[9] == '1' and there.nlink == 0 and there.atime == now then return { 0, s } end
    return ESTALE
  end
  if has_flag(d, IMMUTABLE) then return EPERM end
  local default = acl.default_of(T, q, d)
  local mode, access = acl.inherit(REG, A[3] % 65536, floor(A[3] / 65536), default)
  local gid = floor(d.mode / 1024) % 2 == 1 and d.gid or tonumber(A[5])
  local r = { kind = REG, mode = mode, flags = A[8] == '1' and LEASED or 0, mtime = now, ctime = now,
    atime = now, uid = tonumber(A[4]), gid = gid, nlink = 0, size = 0, version = 0, tail = '\0' }
  acl.give(T, iq, r, access, default)
  call('HSET', T .. 'o', hex(iq), A[7])
  usage(T, 1, 0)
  return { 0, put(T, iq, r) }
end

-- Windows of file q from `first` to `last` that hold something, in order, `limit` at most; and from where
-- to go on (nil: that was all). Looks at a few thousand fields however large the file is.
local function windows_in(T, q, first, last, limit)
  local key, out = T .. 'x' .. hex(q), {}
  if last - first > 256 and call('HLEN', key) <= 4096 then
    for _, field in ipairs(call('HKEYS', key)) do
      local w = tonumber(field) or damaged('window ' .. field .. ' of inode ' .. fmt('%.0f', q))
      if w >= first and w <= last then out[#out + 1] = w end
    end
    table.sort(out)
    local next_w = out[limit + 1]
    for i = #out, limit + 1, -1 do out[i] = nil end
    return out, next_w
  end
  local stop = math.min(last, first + 4095)
  for w = first, stop do
    if call('HEXISTS', key, fmt('%.0f', w)) == 1 then
      if #out == limit then return out, w end
      out[#out + 1] = w
    end
  end
  if stop < last then return out, stop + 1 end
  return out
end

-- inode, first, last window: the first of these that holds something ("": none so far), and from where to
-- go on ("": that was all)
function data.next_window(K, A)
  local out, next_w = windows_in(K[1], tonumber(A[1]), tonumber(A[2]), tonumber(A[3]), 1)
  return { 0, out[1] and fmt('%.0f', out[1]) or '', next_w and fmt('%.0f', next_w) or '' }
end

-- Bytes off to stop, inside one window, become a hole. Changes r and packs, like add_extent().
local function put_hole(T, q, r, off, stop, packs)
  local map, key = byte(r.tail, 1), T .. 'x' .. hex(q)
  if map == 0 then return end
  if map == 1 then
    local eoff, elen, pack, pack_off, stored, flags, _, skip = inline_extent(T, q, r)
    local estop = eoff + elen
    if off >= estop or stop <= eoff then return end
    if off <= eoff and stop >= estop then
      packs[pack] = (packs[pack] or 0) - stored
      r.tail = '\0'
      return
    elseif off <= eoff then
      if floor(flags / 2) % 2 == 0 then flags = flags + 2 end
      r.tail = '\1' .. extent_put(stop, estop - stop, pack, pack_off, stored, flags, skip + stop - eoff)
      return
    elseif stop >= estop then
      r.tail = '\1' .. extent_put(eoff, off - eoff, pack, pack_off, stored, flags, skip)
      return
    end
    call('HSET', key, fmt('%.0f', floor(eoff / WINDOW)), sub(r.tail, 2))
    r.tail = '\2'
  end
  local w = floor(off / WINDOW)
  local field = fmt('%.0f', w)
  local log = call('HGET', key, field)
  if not log then return end
  if off <= w * WINDOW and stop >= math.min((w + 1) * WINDOW, r.size) then
    call('RPUSH', T .. 'g', 'B' .. log)
    call('HDEL', key, field)
  else
    local hole = extent_put(off, stop - off, 0, 0, 0, 1, 0)
    call('HSET', key, field, log .. hole)
    fold.note(T, q, field, #log, #log + #hole)
  end
end

-- What a change of a file's bytes does to its record; writes it.
local function bytes_changed(T, q, r, now, size, packs)
  xattr.kill_capability(T, q, r)
  for pack, stored in pairs(packs) do live(T, pack, stored) end
  if size > r.size then
    usage(T, 0, size - r.size)
    r.size = size
  end
  r.version = r.version + 1
  r.mtime = now
  r.ctime = later(r.ctime, now) and r.ctime or now
  return put(T, q, r)
end

local HOLES = 64 -- windows a call

-- inode, now, off, stop: the bytes that become a hole (none if equal), size: the file's at least, drop
-- set-id bits, retry. Reply: record, from where to go on ("": done). Doing it twice is doing it once.
function data.allocate(K, A)
  local T, q, now, off, stop = K[1], tonumber(A[1]), A[2], tonumber(A[3]), tonumber(A[4])
  local r = get(T, q)
  if not r then return ENOENT end
  if r.kind ~= REG then return EINVAL end
  if has_flag(r, IMMUTABLE) or (has_flag(r, APPEND) and off < stop) then return EPERM end
  local packs, windows, next_w = {}, {}, nil
  local shown = math.min(stop, r.size) -- there is nothing behind the end
  if off < shown then
    if byte(r.tail, 1) == 2 then
      windows, next_w = windows_in(T, q, floor(off / WINDOW), floor((shown - 1) / WINDOW), HOLES)
    else
      local eoff = byte(r.tail, 1) == 1 and inline_extent(T, q, r)
      if eoff then windows = { floor(eoff / WINDOW) } end
    end
  end
  for _, w in ipairs(windows) do
    local a, b = math.max(off, w * WINDOW), math.min(shown, (w + 1) * WINDOW)
    if a < b then put_hole(T, q, r, a, b, packs) end
  end
  if A[6] == '1' then r.mode = drop_suid(r.mode) end
  local s = bytes_changed(T, q, r, now, next_w and 0 or tonumber(A[5]), packs)
  return { 0, s, next_w and fmt('%.0f', next_w * WINDOW) or '' }
end

-- inode, now, end, request, drop set-id bits, items of: extent, window, pack, stored; then retry. Extents
-- that stand in another file (or elsewhere in this one) are put into this one.
function data.clone(K, A)
  local T, q, now, id = K[1], tonumber(A[1]), A[2], A[4]
  if A[#A] == '1' then
    local before = answered(T, id)
    if before then return before end
  end
  local r = get(T, q)
  if not r then return ENOENT end
  if r.kind ~= REG then return EINVAL end
  if r.flags >= IMMUTABLE then return EPERM end
  for i = 8, #A - 1, 4 do
    if gone(T, tonumber(A[i])) then return ESTALE end
  end
  local packs = {}
  for i = 6, #A - 1, 4 do
    local ext, pack = A[i], tonumber(A[i + 2])
    if byte(ext, 1) % 2 == 1 then
      local off, len = extent_at(ext, 1)
      put_hole(T, q, r, off, off + len, packs)
    elseif add_extent(T, q, r, ext, A[i + 1], packs, false) then
      packs[pack] = (packs[pack] or 0) + tonumber(A[i + 3])
    end
  end
  if A[5] == '1' then r.mode = drop_suid(r.mode) end
  return remember(T, id, { 0, bytes_changed(T, q, r, now, tonumber(A[3]), packs) })
end

-- Puts a run behind the end of a file, wherever that is now. Returns version and place, or an errno.
local function append_one(T, q, now, off, len, flags, pack, pack_off, stored)
  local r, packs = get(T, q), {}
  if not r or r.kind ~= REG then return ENOENT end
  if has_flag(r, IMMUTABLE) then return EPERM end
  if gone(T, pack) then return ESTALE end
  local at = r.size
  if at + len > FILE_MAX then return EFBIG end
  if at ~= off and floor(flags / 16) % 2 == 0 then flags = flags + 16 end -- its frames name `off`
  if floor(flags / 32) % 2 == 0 then flags = flags + 32 end -- appended() looks for it
  local done = 0
  while done < len do
    local pos = at + done
    local n = math.min(len - done, WINDOW - pos % WINDOW)
    local ext = extent_put(pos, n, pack, pack_off, stored, done > 0 and flags + 2 or flags, done)
    add_extent(T, q, r, ext, fmt('%.0f', floor(pos / WINDOW)), packs, false)
    packs[pack] = (packs[pack] or 0) + stored
    done = done + n
  end
  bytes_changed(T, q, r, time_of_write(r, now), at + len, packs)
  return r.version, at
end

-- Has the run been appended already? Asked when a reply was lost for so long that nobody knows: looks
-- at the last windows.
local function appended(T, q, pack, pack_off)
  local r = get(T, q)
  if not r or r.kind ~= REG then return nil end
  local function find(log)
    local p = 1
    while p <= #log do
      local off, _, ep, eo, _, _, next_p, skip = extent_at(log, p)
      if not off then return nil end
      if ep == pack and eo == pack_off then return off - skip end -- its beginning may be folded away
      p = next_p
    end
  end
  if byte(r.tail, 1) == 1 then return r.version, find(sub(r.tail, 2)) end
  local last = floor(math.max(r.size - 1, 0) / WINDOW)
  for w = last, math.max(last - 3, 0), -1 do
    local at = find(call('HGET', T .. 'x' .. hex(q), fmt('%.0f', w)) or '')
    if at then return r.version, at end
  end
end

-- request, items of: inode, time of the write, where the client takes the end to be, length, flags, pack, offset in it,
-- stored, sent before; then retry. Reply: for each item its version (or an errno) and its place.
function data.append(K, A)
  local T, out, again = K[1], { 0 }, A[#A] == '1'
  local certain
  if again then
    local before
    before, certain = answered(T, A[1])
    if before then return before end
  end
  for i = 2, #A - 1, 9 do
    local q, pack, pack_off = tonumber(A[i]), tonumber(A[i + 5]), tonumber(A[i + 6])
    local v, at
    if A[i + 8] == '1' or (again and not certain) then v, at = appended(T, q, pack, pack_off) end
    if not at then
      local ok
      ok, v, at = pcall(append_one, T, q, A[i + 1], tonumber(A[i + 2]), tonumber(A[i + 3]),
        tonumber(A[i + 4]), pack, pack_off, tonumber(A[i + 7]))
      if not ok then v = EIO end
    end
    out[#out + 1], out[#out + 2] = v, at or 0
  end
  return remember(T, A[1], out)
end

-- items of: inode, time of the last access; then relative ("1": only as relatime does it), retry
function data.touch(K, A)
  local T, day = K[1], 86400
  local function one(q, at)
    local r = get(T, q)
    if not r or not later(at, r.atime) then return end
    local due = A[#A - 1] ~= '1' or not later(r.atime, r.mtime) or not later(r.atime, r.ctime) or
      time_of(at) - time_of(r.atime) >= day
    if due then
      r.atime = at
      put(T, q, r)
    end
  end
  for i = 1, #A - 2, 2 do pcall(one, tonumber(A[i]), A[i + 1]) end -- a damaged record is for fsck
  return { 0 }
end
