#!lua name=siltfs1
-- siltfs's server-side functions, format version 1: every operation that stays in one shard is one
-- call of one of these. Redis runs a function alone and atomically, so there is no WATCH and no retry:
-- two clients that create different names in one directory never conflict.
--
-- Keys. T is the shard's hash tag "{<shard>}", so that all keys of a shard lie in one cluster slot.
--
--   {0}v             string  settings of the volume, JSON
--   {0}f             string  id of the volume that a format is about to make; gone when it is made
--   {0}S  {0}H       hash    session id -> JSON; sorted set: session id by expiry (ms)
--   Tc               hash    counters: n last inode sequence, i inodes, b bytes, d (see TD),
--                            p last pack, k last and K current dictionary (shard 0),
--                            s last session (shard 0), h ms of the last heartbeat (shard 0)
--   Ti<q/64>         hash    INODE BUCKET: q%64 -> inode record    (q: sequence, hex in key names)
--   Td<q>:<start>    hash    DENTRY BUCKET of directory q: name -> entry
--   Tx<q>            hash    window -> extent log, of files with more than one extent
--   Tx<q>:<n>        hash    the same, cut off by a truncation to 0: garbage
--   Ty<q>            string  target of a long symbolic link
--   Tu<q>            hash    name -> value of extended attributes and ACLs (functions_xattr.lua)
--   Tl<p/64>         hash    p%64 -> live bytes of pack p that this shard's files use; "-": it is gone
--   Tq               set     "q:window": logs that have grown (functions_fold.lua)
--   Tz               set     packs whose live bytes came to 0 here (functions_packs.lua)
--   Tn Tn<p/512>     sets    packs that may be worth compacting (functions_compact.lua)
--   {0}B             string  session of the worker (background work)
--   {0}R             string  who repairs the volume: no sessions are opened meanwhile
--   To TD TV                 deleted files that may be open (functions_deleted.lua)
--   Tg               list    garbage: extents to be subtracted from the live bytes ("B"log, "X"q)
--   Te               hash    q -> lease of directory q (see there)
--   Tk... Tw...              locks of files and who waits for them (functions_lock.lua)
--   Tt               hash    intents of operations across shards: transaction -> what it is
--   Ta<transaction>  string  result of a step that was applied for a transaction
--   TF               hash    session -> what it may not do since it was taken for dead (functions_sent.lua)
--   Tr<session>      hash    number % 128 -> reply of that request (see "requests sent again")
--   Tm<session>      string  the same for inodes that it made: u48 q at q % 128 * 6
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
--   u8 version 1 << 4 | 8 flags follow the mode | 4 atime full | 2 atime delta | 1 ctime full
--   u16 mode; [u8 flags: 1 directory: leased; file: may get its first name | 2 has extended attributes
--   | 4 has an access ACL | 8 directory: has a default ACL | 16 immutable | 32 append-only; 64 and 128
--   are 0]
--   directories: varint number of buckets; 9 bytes mtime (u32 ns, i40 s offset 2^39);
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
local EAGAIN, EXDEV, ENOTEMPTY, EPERM, EIO, ESTALE = -11, -18, -39, -1, -5, -116
local WINDOW = 67108864
local DIR, REG, LNK = 4, 8, 10 -- d_type
local LINK_MAX = 65000
local FILE_MAX = 4503599627370496

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

local TYPE_OF = { [1] = 1, [2] = 2, [4] = 4, [6] = 6, [8] = 8, [10] = 10, [12] = 12 }
local SHARDS_MAX = 4096

-- type, shard (nil: the bucket's own), sequence, moving; nil: damaged
local function entry_get(e)
  local b, lo, hi = byte(e, 1, 3)
  if not lo then return nil end
  local moving = b >= 128
  if moving then b = b - 128 end
  local shard, p = nil, 2
  if b >= 64 then
    shard = lo + (hi or 255) * 256
    b, p = b - 64, 4
  end
  if not TYPE_OF[b] or #e < p or #e > p + 5 or (shard and shard >= SHARDS_MAX) then return nil end
  local q, m = 0, 1
  for i = p, #e do
    q = q + byte(e, i) * m
    m = m * 256
  end
  return b, shard, q, moving
end

local function damaged_entry(T, q, name)
  damaged('entry "' .. name .. '" of directory ' .. shard_of(T) .. ':' .. fmt('%.0f', q))
end

-- --- inode records

local function inode_key(T, q)
  return T .. 'i' .. hex(floor(q / 64)), q % 64
end

-- Flags of an inode, as in its record.
local LEASED, XATTRS, ACL, DEFAULT_ACL, IMMUTABLE, APPEND = 1, 2, 4, 8, 16, 32

-- Decodes a record into a table: kind, mode, flags, n, mtime, ctime, atime, uid, gid, nlink, size,
-- version, tail. Times are 9-byte strings. nil: damaged.
local function parse(s)
  local b, m0, m1 = byte(s, 1, 3)
  if not m1 or floor(b / 16) ~= 1 then return nil end
  local r = { mode = m0 + m1 * 256, flags = 0 }
  local p = 4
  r.kind = TYPE_OF[floor(r.mode / 4096)]
  if not r.kind then return nil end
  if b % 16 >= 8 then
    r.flags = byte(s, 4)
    p = 5
    if not r.flags or r.flags >= 64 then return nil end
  end
  if r.kind == DIR then
    r.n, p = getv(s, p)
    if not r.n or r.n < 1 or r.n > 4294967296 then return nil end
  end
  r.mtime = sub(s, p, p + 8)
  p = p + 9
  if #r.mtime < 9 then return nil end
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
  if not p or #r.ctime < 9 then return nil end
  r.tail = sub(s, p)
  local how = byte(r.tail, 1) or 255
  if (r.kind == REG and (how > 2 or r.size > FILE_MAX)) or (r.kind == DIR and #r.tail ~= 8) or
    (r.kind == LNK and how > 1) or r.version >= 2 * FILE_MAX then return nil end
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
  local b, times, flags = 16, r.mtime, ''
  if r.flags ~= 0 then
    b, flags = 24, char(r.flags)
  end
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
  return char(b, m % 256, floor(m / 256)) .. flags .. (r.kind == DIR and putv(r.n) or '') .. times ..
    putv(r.uid) .. putv(r.gid) .. putv(r.nlink) .. putv(r.size) .. putv(r.version) .. r.tail
end

local function has_flag(r, flag)
  return floor(r.flags / flag) % 2 == 1
end

local function set_flag(r, flag, on)
  if has_flag(r, flag) ~= on then r.flags = r.flags + (on and flag or -flag) end
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

-- Adds to a counter whose value an operation needs.
local function next_of(T, counter, n)
  local v = redis.pcall('HINCRBY', T .. 'c', counter, n)
  if type(v) ~= 'number' then damaged('counter ' .. counter .. ' of shard ' .. shard_of(T)) end
  return v
end

-- These counters tell how much there is. A damaged one stays as it is: it must not stop operations
-- half-way.
local function usage(T, inodes, bytes)
  if inodes ~= 0 then redis.pcall('HINCRBY', T .. 'c', 'i', inodes) end
  if bytes ~= 0 then redis.pcall('HINCRBY', T .. 'c', 'b', fmt('%.0f', bytes)) end
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

-- --- leases
--
-- The lease of a directory promises its holder that nobody else adds a name to it for LEASE_MS: so the
-- holder, once it knows all names, can say that a name is not there without asking (a create would
-- otherwise begin with a lookup of its own). Others may remove names at any time. A lease is given on
-- request when a name is added, renewed when the holder adds more, and simply runs out; who is kept
-- waiting by one bars new ones from that directory for a while, longer each time.
--
--   Te   hash   q -> holder or 0, ms when that ends, ms of the last bar, 1 if somebody waits
--               (a flag in the directory's record says that there may be a field, so that other
--               directories pay nothing)

local LEASE_MS, BAR_MS, BAR_MAX_MS = 500, 5000, 600000

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + floor(t[2] / 1000)
end

local function lease_get(T, q)
  local s = call('HGET', T .. 'e', hex(q))
  local holder, stop, bar, waited = string.match(s or '', '^(%d+) (%d+) (%d+) ([01])$')
  return holder, tonumber(stop) or 0, tonumber(bar) or 0, waited == '1'
end

local function lease_set(T, q, holder, stop, bar, waited)
  call('HSET', T .. 'e', hex(q), fmt('%s %.0f %.0f %d', holder, stop, bar, waited))
end

-- Leases that ran out are dropped when new ones are given, a few at random each time, so that Te does
-- not grow with every directory that ever had one. (The flag in the record may stay: no field, no lease.)
local function lease_trim(T, now)
  local some = call('HRANDFIELD', T .. 'e', 3, 'WITHVALUES')
  for i = 1, #some, 2 do
    local stop, bar = string.match(some[i + 1], '^%d+ (%d+) (%d+) [01]$')
    if not stop or stop + bar < now then call('HDEL', T .. 'e', some[i]) end
  end
end

-- Before `session` adds a name to directory q. Returns for how many ms it holds the lease (0: it does
-- not; negative: it holds it anew, others may have added names before), and whether it must wait for
-- another's. Changes d.flags; who goes on to add a name writes d.
local function lease(T, q, d, session, wanted)
  if d.flags % 2 == 0 and not wanted then return 0 end
  local now = now_ms()
  local holder, stop, bar, waited = nil, 0, 0, false
  if has_flag(d, LEASED) then holder, stop, bar, waited = lease_get(T, q) end
  local mine, runs = holder == session, stop > now
  if holder and holder ~= '0' and not mine then
    if runs then
      if not waited then
        lease_set(T, q, holder, stop, math.min(math.max(bar * 2, BAR_MS), BAR_MAX_MS), 1)
      end
      return 0, true
    elseif waited then
      lease_set(T, q, '0', now + bar, bar, 0)
      return 0
    end
  end
  if holder == '0' and runs then return 0 end
  if mine and waited and not runs then
    lease_set(T, q, '0', now + bar, bar, 0)
    return 0
  end
  if mine and (waited or stop - now > LEASE_MS / 2) then return stop - now end
  if wanted then
    lease_trim(T, now)
    lease_set(T, q, session, now + LEASE_MS, bar, 0)
    set_flag(d, LEASED, true)
    return mine and runs and LEASE_MS or -LEASE_MS
  end
  if mine and runs then return stop - now end
  call('HDEL', T .. 'e', hex(q))
  set_flag(d, LEASED, false)
  return 0
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

local SMALL_PACK = 1048576

-- The pack may be worth compacting (functions_compact.lua).
local function note_pack(T, pack)
  local part = floor(pack / 512)
  if call('SADD', T .. 'n' .. hex(part), fmt('%.0f', pack)) == 1 then
    call('SADD', T .. 'n', fmt('%.0f', part))
  end
end

-- Half powers of two (1, 1.5, 2, 3, 4, 6...): a number that grows with the bytes.
local function step_of(bytes)
  local m, e = math.frexp(bytes)
  return 2 * e + (m >= 0.75 and 1 or 0)
end

local function live(T, pack, delta)
  if pack == 0 or delta == 0 then return end
  local key, field = T .. 'l' .. hex(floor(pack / 64)), pack % 64
  local left = redis.pcall('HINCRBY', key, field, fmt('%.0f', delta)) -- no number: damaged, so never 0
  -- A negative one is wrong, and stays for fsck to see: the pack is not taken for dead.
  if left == 0 and delta < 0 then
    call('HDEL', key, field)
    call('SADD', T .. 'z', fmt('%.0f', pack))
  elseif type(left) == 'number' and left > 0 then
    if (left == delta and left < SMALL_PACK) or step_of(left) < step_of(left - delta) then note_pack(T, pack) end
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
  if has_flag(r, LEASED) then call('HDEL', T .. 'e', hex(q)) end
  if r.flags % IMMUTABLE >= XATTRS then call('UNLINK', T .. 'u' .. hex(q)) end
  usage(T, -1, r.kind == REG and -r.size or 0)
end

local function drop_suid(mode)
  if floor(mode / 2048) % 2 == 1 then mode = mode - 2048 end
  if floor(mode / 1024) % 2 == 1 and floor(mode / 8) % 2 == 1 then mode = mode - 1024 end
  return mode
end

-- Time of a write, 9 bytes; one more byte says that the writer has not the privilege by which set-id bits
-- stay. Changes r.mode.
local function time_of_write(r, now)
  if #now > 9 then r.mode = drop_suid(r.mode) end
  return sub(now, 1, 9)
end
