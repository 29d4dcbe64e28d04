#!lua name=siltfs1
-- siltfs's server-side functions, format version 1: every operation that stays in one shard is one
-- call of one of these. Redis runs a function alone and atomically, so there is no WATCH and no retry:
-- two clients that create different names in one directory never conflict.
--
-- Keys. T is the shard's hash tag "{<shard>}", so that all keys of a shard lie in one cluster slot.
--
--   {0}v             string  settings of the volume, JSON
--   {0}S  {0}H       hash    session id -> JSON; sorted set: session id by expiry (ms)
--   Tc               hash    counters: n last inode sequence, i inodes, b bytes, p last pack (shard 0),
--                            s last session (shard 0)
--   Ti<q/64>         hash    INODE BUCKET: q%64 -> inode record    (q: sequence, hex in key names)
--   Td<q>:<start>    hash    DENTRY BUCKET of directory q: name -> entry
--   Tx<q>            hash    window -> extent log, of files with more than one extent
--   Ty<q>            string  target of a long symbolic link
--   Tl<p/64>         hash    p%64 -> live bytes of pack p that this shard's files use
--   Tz               set     packs whose live bytes came to 0 here
--   To               hash    q -> session that holds this deleted inode open
--   Tg               list    garbage: extents to be subtracted from the live bytes ("B"log, "X"q)
--   Tt               hash    intents of operations across shards: transaction -> what it is
--   Ta<transaction>  string  result of a step that was applied for a transaction
--
-- Dentry buckets. A name's place in its directory is the first 52 bits of its SHA-1; that never
-- changes, and a listing goes in the order of places. With n buckets, 2^L <= n < 2^(L+1), the range of
-- places is cut in 2^L equal parts, and the first n - 2^L parts are cut in two once more (linear
-- hashing, in order). A bucket's key is named by the first 32 bits of the place where its part begins,
-- so a split moves the upper half of one bucket to a new key and touches nothing else; a directory
-- grows and shrinks by one bucket at a time, and a listing's cursor stays valid throughout.
--
-- Entry:  u8 type (d_type) | 0x40 other shard | 0x80 being moved by an intent;
--         [u16 shard if 0x40]; sequence, little-endian, as many bytes as it needs.
--
-- Inode record (all a bucket knows of a file; about 34 bytes for a small one):
--   u8 version 1 << 4 | 8 unused | 4 atime full | 2 atime delta | 1 ctime full
--   u16 mode; directories: varint number of buckets; 9 bytes mtime (u32 ns, i40 s offset 2^39);
--   [9 bytes ctime, else same as mtime]; [varint ns that atime is before mtime | 9 bytes atime];
--   varints uid gid nlink size version; then by type
--     regular    u8 0: no extents | 1: the extent (meta/extent.h) follows | 2: logs in Tx
--     directory  u16 shard, u48 sequence of the parent; its size is the number of its entries
--     symlink    u8 0: the target follows | 1: it is in Ty
--     device     varint rdev
--
-- Replies: a negative errno as an integer, or an array that begins with 0 (or 1). A record that does
-- not decode raises DAMAGED with the key's name. Every writing function takes a last argument "1" when
-- the client sends it again after a broken connection, and is idempotent then. Functions that free
-- memory carry allow-oom, so that deletes work when Redis is full.

-- A library sees no globals while it is loaded: ready() fetches them at the first call.
local call, sha1hex, byte, char, sub, fmt, floor
local ENOENT, EEXIST, ENOTDIR, EISDIR, EINVAL, EMLINK = -2, -17, -20, -21, -22, -31
local EAGAIN, EXDEV, ENOTEMPTY, EPERM, EIO = -11, -18, -39, -1, -5
local WINDOW = 67108864
local DIR, REG, LNK = 4, 8, 10 -- d_type
local LINK_MAX = 65000

local function damaged(what)
  error({ err = 'DAMAGED ' .. what })
end

-- --- numbers

local function getv(s, p) -- varint at p: value, next p
  local v, m = 0, 1
  while true do
    local b = byte(s, p)
    if not b then return nil end
    p = p + 1
    if b < 128 then return v + b * m, p end
    v = v + (b - 128) * m
    m = m * 128
    if m > 2 ^ 63 then return nil end
  end
end

local function putv(v)
  if v < 128 then return char(v) end
  if v < 16384 then return char(v % 128 + 128, floor(v / 128)) end
  local t = ''
  while v >= 128 do
    t = t .. char(v % 128 + 128)
    v = floor(v / 128)
  end
  return t .. char(v)
end

local function hex(v)
  if v < 4294967296 then return fmt('%x', v) end
  return fmt('%x%08x', floor(v / 4294967296), v % 4294967296)
end

local function time_of(t) -- 9 bytes: seconds, nanoseconds
  local a, b, c, d, e, f, g, h, i = byte(t, 1, 9)
  return e + f * 256 + g * 65536 + h * 16777216 + i * 4294967296,
    a + b * 256 + c * 65536 + d * 16777216
end

local function later(a, b) -- is time a after time b?
  local as, an = time_of(a)
  local bs, bn = time_of(b)
  return as > bs or (as == bs and an > bn)
end

-- --- entries

local function shard_of(T)
  return tonumber(sub(T, 2, -2))
end

local function put_seq(q)
  local t = ''
  repeat
    t = t .. char(q % 256)
    q = floor(q / 256)
  until q == 0
  return t
end

local function entry_of(kind, shard, q, T)
  if shard == shard_of(T) then return char(kind) .. put_seq(q) end
  return char(kind + 64, shard % 256, floor(shard / 256)) .. put_seq(q)
end

-- type, shard (nil: the bucket's own), sequence, moving
local function entry_get(e)
  local b = byte(e, 1)
  local moving = b >= 128
  if moving then b = b - 128 end
  local shard, p = nil, 2
  if b >= 64 then
    shard = byte(e, 2) + byte(e, 3) * 256
    b, p = b - 64, 4
  end
  local q, m = 0, 1
  for i = p, #e do
    q = q + byte(e, i) * m
    m = m * 256
  end
  return b, shard, q, moving
end

-- --- inode records

local TYPE_OF = { [1] = 1, [2] = 2, [4] = 4, [6] = 6, [8] = 8, [10] = 10, [12] = 12 }

local function inode_key(T, q)
  return T .. 'i' .. hex(floor(q / 64)), q % 64
end

-- Decodes a record into a table: kind, mode, n, mtime, ctime, atime, uid, gid, nlink, size, version,
-- tail. Times are 9-byte strings. nil: damaged.
local function parse(s)
  local b, m0, m1 = byte(s, 1, 3)
  if not m1 or floor(b / 16) ~= 1 then return nil end
  local r = { mode = m0 + m1 * 256 }
  local p = 4
  r.kind = TYPE_OF[floor(r.mode / 4096)]
  if not r.kind then return nil end
  if r.kind == DIR then
    r.n, p = getv(s, p)
    if not r.n or r.n < 1 then return nil end
  end
  r.mtime = sub(s, p, p + 8)
  p = p + 9
  if b % 2 == 1 then
    r.ctime = sub(s, p, p + 8)
    p = p + 9
  else
    r.ctime = r.mtime
  end
  local am = floor(b / 2) % 4
  if am == 2 then
    r.atime = sub(s, p, p + 8)
    p = p + 9
  elseif am == 1 then
    local delta
    delta, p = getv(s, p)
    if not delta then return nil end
    r.adelta = delta
  else
    r.atime = r.mtime
  end
  r.uid, p = getv(s, p)
  if not p then return nil end
  r.gid, p = getv(s, p)
  if not p then return nil end
  r.nlink, p = getv(s, p)
  if not p then return nil end
  r.size, p = getv(s, p)
  if not p then return nil end
  r.version, p = getv(s, p)
  if not p or #r.mtime < 9 or #r.ctime < 9 then return nil end
  r.tail = sub(s, p)
  if r.adelta then
    local ms, mn = time_of(r.mtime)
    local ns = mn - r.adelta % 1000000000
    local s2 = ms - floor(r.adelta / 1000000000)
    if ns < 0 then ns, s2 = ns + 1000000000, s2 - 1 end
    r.atime = struct.pack('<I4', ns) .. struct.pack('<I4', s2 % 4294967296) ..
      char(floor(s2 / 4294967296) % 256)
  end
  if #r.atime < 9 then return nil end
  return r
end

local function build(r)
  local b, times = 16, r.mtime
  if r.ctime ~= r.mtime then
    b, times = b + 1, times .. r.ctime
  end
  if r.atime ~= r.mtime then
    local ms, mn = time_of(r.mtime)
    local as, an = time_of(r.atime)
    local delta = (ms - as) * 1000000000 + mn - an
    if delta > 0 and delta < 34359738368 then -- up to 34 s: 5 bytes at most
      b, times = b + 2, times .. putv(delta)
    else
      b, times = b + 4, times .. r.atime
    end
  end
  local m = r.mode
  return char(b, m % 256, floor(m / 256)) .. (r.kind == DIR and putv(r.n) or '') .. times ..
    putv(r.uid) .. putv(r.gid) .. putv(r.nlink) .. putv(r.size) .. putv(r.version) .. r.tail
end

local function get(T, q) -- record of an inode, or nil
  local key, field = inode_key(T, q)
  local s = call('HGET', key, field)
  if not s then return nil end
  local r = parse(s)
  if not r then damaged('inode ' .. shard_of(T) .. ':' .. fmt('%.0f', q)) end
  return r, s
end

local function put(T, q, r)
  local key, field = inode_key(T, q)
  local s = build(r)
  call('HSET', key, field, s)
  return s
end

local function drop(T, q)
  local key, field = inode_key(T, q)
  call('HDEL', key, field)
end

local function get_dir(T, q) -- or nil, errno
  local d = get(T, q)
  if not d then return nil, ENOENT end
  if d.kind ~= DIR then return nil, ENOTDIR end
  if d.nlink == 0 then return nil, ENOENT end
  return d
end

local function usage(T, inodes, bytes)
  if inodes ~= 0 then call('HINCRBY', T .. 'c', 'i', inodes) end
  if bytes ~= 0 then call('HINCRBY', T .. 'c', 'b', fmt('%.0f', bytes)) end
end

-- --- dentry buckets

local function place_of(name)
  return tonumber(sub(sha1hex(name), 1, 13), 16)
end

-- Where the bucket of `place` begins and how wide it is, in a directory of n buckets.
local function bucket_of(n, place)
  local _, e = math.frexp(n)
  local parts = 2 ^ (e - 1)
  local width = 4503599627370496 / parts -- 2^52
  local part = floor(place / width)
  if part < n - parts then
    width = width / 2
    part = floor(place / width)
  end
  return part * width, width
end

local function bucket_key(T, q, start)
  return T .. 'd' .. hex(q) .. ':' .. fmt('%x', floor(start / 1048576))
end

local function dentry_key(T, q, n, name)
  return bucket_key(T, q, (bucket_of(n, place_of(name))))
end

-- One step of growing or shrinking towards `fill` entries a bucket. Changes d.n only.
local function split(T, q, d)
  local n = d.n
  local _, e = math.frexp(n)
  local parts = 2 ^ (e - 1)
  local width = 4503599627370496 / parts
  local start = (n - parts) * width
  local middle = start + width / 2
  local from, to = bucket_key(T, q, start), bucket_key(T, q, middle)
  local all = call('HGETALL', from)
  local move, names = {}, {}
  for i = 1, #all, 2 do
    if place_of(all[i]) >= middle then
      move[#move + 1] = all[i]
      move[#move + 1] = all[i + 1]
      names[#names + 1] = all[i]
    end
  end
  for i = 1, #move, 200 do
    call('HSET', to, unpack(move, i, math.min(i + 199, #move)))
  end
  if #names * 2 == #all then
    call('DEL', from)
  else
    for i = 1, #names, 200 do
      call('HDEL', from, unpack(names, i, math.min(i + 199, #names)))
    end
  end
  d.n = n + 1
end

local function merge(T, q, d)
  local n = d.n - 1
  local _, e = math.frexp(n)
  local parts = 2 ^ (e - 1)
  local width = 4503599627370496 / parts
  local start = (n - parts) * width
  local from, to = bucket_key(T, q, start + width / 2), bucket_key(T, q, start)
  local all = call('HGETALL', from)
  for i = 1, #all, 200 do
    call('HSET', to, unpack(all, i, math.min(i + 199, #all)))
  end
  call('DEL', from)
  d.n = n
end

-- Writes a directory back after a change of its entries: count, sub-directories, times, buckets.
local function touch_dir(T, q, d, entries, subdirs, now, fill)
  d.size = d.size + entries
  d.nlink = d.nlink + subdirs
  d.mtime, d.ctime = now, now
  d.version = d.version + 1
  if entries > 0 and d.size > d.n * fill then
    split(T, q, d)
  elseif entries < 0 and d.n > 1 and d.size * 4 < (d.n - 1) * fill then
    merge(T, q, d)
  end
  return put(T, q, d)
end

-- --- extents

-- off, len, pack, pack_off, stored, flags, next p; nil: damaged
local function extent_at(s, p)
  local flags, off, len
  flags, p = getv(s, p)
  if not flags then return nil end
  off, p = getv(s, p)
  if not off then return nil end
  len, p = getv(s, p)
  if not len then return nil end
  local pack, pack_off, stored, skip = 0, 0, 0, 0
  if flags % 2 == 0 then
    pack, p = getv(s, p)
    if not pack then return nil end
    pack_off, p = getv(s, p)
    if not pack_off then return nil end
    stored, p = getv(s, p)
    if not stored then return nil end
  end
  if floor(flags / 2) % 2 == 1 then
    skip, p = getv(s, p)
    if not skip then return nil end
  end
  return off, len, pack, pack_off, stored, flags, p, skip
end

local function extent_put(off, len, pack, pack_off, stored, flags, skip)
  local s = putv(flags) .. putv(off) .. putv(len)
  if flags % 2 == 0 then s = s .. putv(pack) .. putv(pack_off) .. putv(stored) end
  if floor(flags / 2) % 2 == 1 then s = s .. putv(skip) end
  return s
end

local function live(T, pack, delta)
  if pack == 0 or delta == 0 then return end
  local key, field = T .. 'l' .. hex(floor(pack / 64)), pack % 64
  local left = call('HINCRBY', key, field, fmt('%.0f', delta))
  if left <= 0 and delta < 0 then
    call('HDEL', key, field)
    call('SADD', T .. 'z', fmt('%.0f', pack))
  end
end

local function inline_extent(T, q, r)
  local off, len, pack, pack_off, stored, flags, p, skip = extent_at(r.tail, 2)
  if not off then damaged('inode ' .. shard_of(T) .. ':' .. fmt('%.0f', q) .. ' extent') end
  return off, len, pack, pack_off, stored, flags, p, skip
end

-- Gives the space of a regular file's extents (and a link's target) free.
local function free_data(T, q, r)
  if r.kind == REG then
    local map = byte(r.tail, 1)
    if map == 1 then
      local _, _, pack, _, stored = inline_extent(T, q, r)
      live(T, pack, -stored)
    elseif map == 2 then
      call('RPUSH', T .. 'g', 'X' .. hex(q))
    end
  elseif r.kind == LNK and byte(r.tail, 1) == 1 then
    call('DEL', T .. 'y' .. hex(q))
  end
end

local function destroy(T, q, r)
  free_data(T, q, r)
  drop(T, q)
  usage(T, -1, r.kind == REG and -r.size or 0)
end

-- Takes one name away from inode q. Returns its record afterwards.
local function drop_link(T, q, r, keep, now)
  r.nlink = r.nlink - 1
  r.ctime = now
  if r.nlink > 0 then return put(T, q, r) end
  r.nlink = 0
  if keep ~= '' then
    call('HSET', T .. 'o', hex(q), keep)
    return put(T, q, r)
  end
  destroy(T, q, r)
  return build(r)
end

local function truncate_windows(T, q, size)
  local key = T .. 'x' .. hex(q)
  local first = floor(size / WINDOW)
  for _, w in ipairs(call('HKEYS', key)) do
    local n = tonumber(w)
    if n > first or (n == first and size % WINDOW == 0) then
      call('RPUSH', T .. 'g', 'B' .. call('HGET', key, w))
      call('HDEL', key, w)
    elseif n == first then
      local hole = extent_put(size, (first + 1) * WINDOW - size, 0, 0, 0, 1, 0)
      call('HSET', key, w, call('HGET', key, w) .. hole)
    end
  end
end

-- Cuts or extends a regular file. Changes r only (the caller puts it).
local function resize(T, q, r, size)
  local map = byte(r.tail, 1)
  if size < r.size and map == 1 then
    local off, len, pack, pack_off, stored, flags, _, skip = inline_extent(T, q, r)
    if size <= off then
      live(T, pack, -stored)
      r.tail = '\0'
    elseif size < off + len then
      r.tail = '\1' .. extent_put(off, size - off, pack, pack_off, stored, flags, skip)
    end
  elseif size < r.size and map == 2 then
    truncate_windows(T, q, size)
    if size == 0 then r.tail = '\0' end
  end
  usage(T, 0, size - r.size)
  r.size = size
end

local function drop_suid(mode)
  if floor(mode / 2048) % 2 == 1 then mode = mode - 2048 end
  if floor(mode / 1024) % 2 == 1 and floor(mode / 8) % 2 == 1 then mode = mode - 1024 end
  return mode
end

-- --- reading

local function lookup(K, A)
  local T, q, name = K[1], tonumber(A[1]), A[2]
  local d, e = get_dir(T, q)
  if not d then return e end
  local entry = call('HGET', dentry_key(T, q, d.n, name), name)
  if not entry then return ENOENT end
  local _, shard, iq = entry_get(entry)
  if shard then return { 0, entry, '' } end
  local key, field = inode_key(T, iq)
  return { 0, entry, call('HGET', key, field) or '' }
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

-- A page: whole buckets from the one that holds place A[2] on, until A[3] entries are there.
local function readdir(K, A)
  local T, q, place, want, attrs = K[1], tonumber(A[1]), tonumber(A[2]), tonumber(A[3]), A[4] == '1'
  local d, e = get_dir(T, q)
  if not d then return e end
  local out, count = { 0, '' }, 0
  repeat
    local start, width = bucket_of(d.n, place)
    local all = call('HGETALL', bucket_key(T, q, start))
    for i = 1, #all, 2 do
      local n = #out
      out[n + 1], out[n + 2], out[n + 3] = all[i], all[i + 1], ''
      if attrs then
        local _, shard, iq = entry_get(all[i + 1])
        if not shard then
          local key, field = inode_key(T, iq)
          out[n + 3] = call('HGET', key, field) or ''
        end
      end
    end
    count = count + #all / 2
    place = start + width
  until count >= want or place >= 4503599627370496
  out[2] = place >= 4503599627370496 and '' or fmt('%.0f', place)
  return out
end

local function statfs(K, A)
  local c = call('HMGET', K[1] .. 'c', 'i', 'b')
  return { 0, c[1] or '0', c[2] or '0' }
end

-- --- writing

-- dir, name, new sequence, mode, uid, gid, now, tail, long target, open_existing, fill, retry
local function make(K, A)
  local T, q, name, iq = K[1], tonumber(A[1]), A[2], tonumber(A[3])
  local now, fill = A[7], tonumber(A[11])
  local d, e = get_dir(T, q)
  if not d then return e end
  local key = dentry_key(T, q, d.n, name)
  local entry = call('HGET', key, name)
  if entry then
    local _, shard, oq = entry_get(entry)
    local s = ''
    if not shard then
      local k, f = inode_key(T, oq)
      s = call('HGET', k, f) or ''
      if oq == iq then return { 0, entry, s } end -- sent again: we made it
    end
    return { A[10] == '1' and 1 or EEXIST, entry, s }
  end
  local mode, gid = tonumber(A[4]), tonumber(A[6])
  local kind = TYPE_OF[floor(mode / 4096)]
  if not kind then return EINVAL end
  if floor(d.mode / 1024) % 2 == 1 then
    gid = d.gid
    if kind == DIR and floor(mode / 1024) % 2 == 0 then mode = mode + 1024 end
  end
  local r = { kind = kind, mode = mode, mtime = now, ctime = now, atime = now, uid = tonumber(A[5]),
    gid = gid, nlink = 1, size = 0, version = 0, tail = A[8] }
  if kind == DIR then
    if d.nlink >= LINK_MAX * 1000 then return EMLINK end
    r.n, r.nlink = 1, 2
    r.tail = struct.pack('<I2I6', shard_of(T), q)
  elseif kind == LNK then
    r.size = A[9] == '' and #A[8] - 1 or #A[9]
    if A[9] ~= '' then call('SET', T .. 'y' .. hex(iq), A[9]) end
  end
  local s = put(T, iq, r)
  entry = entry_of(kind, shard_of(T), iq, T)
  call('HSET', key, name, entry)
  touch_dir(T, q, d, 1, kind == DIR and 1 or 0, now, fill)
  usage(T, 1, 0)
  return { 0, entry, s }
end

-- inode, what, mode, uid, gid, size, atime, mtime, ctime, now, retry
local function setattr(K, A)
  local T, q, set = K[1], tonumber(A[1]), tonumber(A[2])
  local r = get(T, q)
  if not r then return ENOENT end
  local function has(b) return floor(set / b) % 2 == 1 end
  if has(8) then
    if r.kind == DIR then return EISDIR end
    if r.kind ~= REG then return EINVAL end
    local size = tonumber(A[6])
    resize(T, q, r, size)
    r.version = r.version + 1
    r.mtime = A[10]
  end
  if has(128) then r.mode = drop_suid(r.mode) end
  if has(1) then r.mode = floor(r.mode / 4096) * 4096 + tonumber(A[3]) % 4096 end
  if has(2) then r.uid = tonumber(A[4]) end
  if has(4) then r.gid = tonumber(A[5]) end
  if has(16) then r.atime = A[7] end
  if has(32) then r.mtime = A[8] end
  r.ctime = has(64) and A[9] or A[10]
  return { 0, put(T, q, r) }
end

-- inode, dir, name, now, fill, retry
local function link(K, A)
  local T, iq, q, name, now = K[1], tonumber(A[1]), tonumber(A[2]), A[3], A[4]
  local r, s = get(T, iq)
  if not r then return ENOENT end
  if r.kind == DIR then return EPERM end
  local d, e = get_dir(T, q)
  if not d then return e end
  local key = dentry_key(T, q, d.n, name)
  local old = call('HGET', key, name)
  if old then
    local _, shard, oq = entry_get(old)
    if A[6] == '1' and not shard and oq == iq then return { 0, s } end
    return EEXIST
  end
  if r.nlink >= LINK_MAX then return EMLINK end
  if r.nlink == 0 then return ENOENT end
  r.nlink, r.ctime = r.nlink + 1, now
  s = put(T, iq, r)
  call('HSET', key, name, entry_of(r.kind, shard_of(T), iq, T))
  touch_dir(T, q, d, 1, 0, now, tonumber(A[5]))
  return { 0, s }
end

-- dir, name, session that keeps it open or "", now, fill, transaction, retry
-- Reply 0, entry, record afterwards; 1, entry, "": the inode is elsewhere, an intent was left.
local function unlink(K, A)
  local T, q, name, now = K[1], tonumber(A[1]), A[2], A[4]
  local d, e = get_dir(T, q)
  if not d then return e end
  local key = dentry_key(T, q, d.n, name)
  local entry = call('HGET', key, name)
  if not entry then return A[7] == '1' and { 0, '', '' } or ENOENT end
  local kind, shard, iq, moving = entry_get(entry)
  if kind == DIR then return EISDIR end
  if moving then return EAGAIN end
  local code, s = 0, ''
  if shard then
    code = 1
    call('HSET', T .. 't', A[6], 'U' .. entry)
  else
    local r = get(T, iq)
    if r then s = drop_link(T, iq, r, A[3], now) end
  end
  call('HDEL', key, name)
  touch_dir(T, q, d, -1, 0, now, tonumber(A[5]))
  return { code, entry, s }
end

-- dir, name, now, fill, retry
local function rmdir(K, A)
  local T, q, name, now = K[1], tonumber(A[1]), A[2], A[3]
  local d, e = get_dir(T, q)
  if not d then return e end
  local key = dentry_key(T, q, d.n, name)
  local entry = call('HGET', key, name)
  if not entry then return A[5] == '1' and { 0 } or ENOENT end
  local kind, shard, iq, moving = entry_get(entry)
  if kind ~= DIR then return ENOTDIR end
  if moving then return EAGAIN end
  if shard then return EXDEV end
  local r = get(T, iq)
  if r and r.size > 0 then return ENOTEMPTY end
  if r then destroy(T, iq, r) end
  call('HDEL', key, name)
  touch_dir(T, q, d, -1, -1, now, tonumber(A[4]))
  return { 0 }
end

local function is_below(T, q, top) -- is directory q the directory top, or below it?
  for _ = 1, 10000 do
    if q == top then return true end
    local d = get(T, q)
    if not d or q == 1 then return false end
    local shard, parent = struct.unpack('<I2I6', d.tail)
    if shard ~= shard_of(T) then return false end -- the client forbade that case
    q = parent
  end
  return true
end

-- from dir, name, to dir, name, flags (1 noreplace 2 exchange), keep, now, fill, transaction,
-- many shards, retry. Reply: code, moved entry, moved record, replaced entry, replaced record
local function rename(K, A)
  local T, fq, from, tq, to = K[1], tonumber(A[1]), A[2], tonumber(A[3]), A[4]
  local flags, now, fill = tonumber(A[5]), A[7], tonumber(A[8])
  local fd, e = get_dir(T, fq)
  if not fd then return e end
  local td = fd
  if tq ~= fq then
    td, e = get_dir(T, tq)
    if not td then return e end
  end
  local fkey, tkey = dentry_key(T, fq, fd.n, from), dentry_key(T, tq, td.n, to)
  local src, dst = call('HGET', fkey, from), call('HGET', tkey, to)
  if not src then return A[11] == '1' and dst and { 0, dst, '', '', '' } or ENOENT end
  local skind, sshard, sq, smoving = entry_get(src)
  local dkind, dshard, dq, dmoving
  if dst then dkind, dshard, dq, dmoving = entry_get(dst) end
  if smoving or dmoving then return EAGAIN end
  if dst and flags == 1 then return EEXIST end
  if not dst and flags == 2 then return ENOENT end
  local sr = not sshard and get(T, sq) or nil
  if dst and sshard == dshard and sq == dq then return { 0, src, sr and build(sr) or '', '', '' } end
  if fq ~= tq and (skind == DIR or (flags == 2 and dkind == DIR)) then
    if A[10] == '1' then return EXDEV end
    if skind == DIR and is_below(T, tq, sq) then return EINVAL end
    if flags == 2 and dkind == DIR and is_below(T, fq, dq) then return EINVAL end
  end
  local code, ds = 0, ''
  local dr = dst and not dshard and get(T, dq) or nil
  if dst and flags ~= 2 then
    if skind == DIR and dkind ~= DIR then return ENOTDIR end
    if skind ~= DIR and dkind == DIR then return EISDIR end
    if dkind == DIR and dshard then return EXDEV end
    if dkind == DIR and dr and dr.size > 0 then return ENOTEMPTY end
    if dkind == DIR then
      if dr then destroy(T, dq, dr) end
    elseif dshard then
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
    return { 0, src, ss, '', '' }
  end
  call('HDEL', fkey, from)
  if fq == tq then
    touch_dir(T, fq, fd, dst and -1 or 0, -ddir, now, fill)
  else
    touch_dir(T, fq, fd, -1, -sdir, now, fill)
    touch_dir(T, tq, td, dst and 0 or 1, sdir - ddir, now, fill)
  end
  return { code, src, ss, dst or '', ds }
end

-- inode, session, retry
local function release(K, A)
  local T, q = K[1], tonumber(A[1])
  local holder = call('HGET', T .. 'o', hex(q))
  if holder ~= A[2] then return { 0 } end
  call('HDEL', T .. 'o', hex(q))
  local r = get(T, q)
  if r and r.nlink == 0 then destroy(T, q, r) end
  return { 0 }
end

-- Adds one extent to a file's map. Changes r; returns the bytes that became free in `pack`.
local function add_extent(T, q, r, ext, win)
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
      live(T, pack, -stored)
      r.tail = '\1' .. ext
      return true
    end
    call('HSET', T .. 'x' .. hex(q), fmt('%.0f', floor(off / WINDOW)), sub(r.tail, 2))
    r.tail = '\2'
  end
  local key = T .. 'x' .. hex(q)
  local log = call('HGET', key, win) or ''
  if #log >= #ext and sub(log, -#ext) == ext then return false end -- sent again
  call('HSET', key, win, log .. ext)
  return true
end

-- Applies one item; adds what it stores to packs[pack]. Returns the file's version, or an errno.
local function commit_one(T, q, now, stop, ext, win, pack, stored, packs)
  local r = get(T, q)
  if not r or r.kind ~= REG then return ENOENT end
  if add_extent(T, q, r, ext, win) then
    packs[pack] = (packs[pack] or 0) + stored
    r.version = r.version + 1
  end
  if stop > r.size then
    usage(T, 0, stop - r.size)
    r.size = stop
  end
  r.mode = drop_suid(r.mode)
  r.mtime = now
  r.ctime = later(r.ctime, r.mtime) and r.ctime or r.mtime
  put(T, q, r)
  return r.version
end

-- items of: inode, now, end, extent, window, pack, stored; then retry. Reply: a version or errno each;
-- a damaged record fails its own item only.
local function commit(K, A)
  local T, out, packs = K[1], {}, {}
  for i = 1, #A - 1, 7 do
    local ok, v = pcall(commit_one, T, tonumber(A[i]), A[i + 1], tonumber(A[i + 2]), A[i + 3], A[i + 4],
      tonumber(A[i + 5]), tonumber(A[i + 6]), packs)
    out[#out + 1] = ok and v or EIO
  end
  for pack, stored in pairs(packs) do live(T, pack, stored) end
  return out
end

-- counter, how many, retry: the first of the numbers reserved
local function alloc(K, A)
  local n = tonumber(A[2])
  return { 0, fmt('%.0f', call('HINCRBY', K[1] .. 'c', A[1], n) - n + 1) }
end

-- uid, gid, mode, now, settings: the root directory and the settings, unless there is a volume
local function format(K, A)
  local T = K[1]
  if call('EXISTS', T .. 'v') == 1 then return EEXIST end
  local r = { kind = DIR, mode = tonumber(A[3]), n = 1, mtime = A[4], ctime = A[4], atime = A[4],
    uid = tonumber(A[1]), gid = tonumber(A[2]), nlink = 2, size = 0, version = 0,
    tail = struct.pack('<I2I6', 0, 1) }
  put(T, 1, r)
  call('HSET', T .. 'c', 'n', 1, 'i', 1, 'b', 0)
  call('SET', T .. 'v', A[5])
  return { 0 }
end
