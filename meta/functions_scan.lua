
-- --- everything that there is, for gc and fsck: by number, not by SCAN, so nothing comes twice

local scan = {}

-- the last inode's number here, the last pack's (shard 0), inodes and bytes in use
function scan.limits(K)
  local c = call('HMGET', K[1] .. 'c', 'n', 'p', 'i', 'b')
  return { 0, c[1] or '0', c[2] or '0', c[3] or '0', c[4] or '0' }
end

-- inode bucket to begin with, the last one: the next bucket ("": that was all), then number and record of
-- the inodes in some buckets
function scan.inodes(K, A)
  local T, b, last, bytes = K[1], tonumber(A[1]), tonumber(A[2]), 0
  local out, stop = { 0, '' }, b + 2000
  while b <= last and b < stop and bytes < 131072 do
    local all = call('HGETALL', T .. 'i' .. hex(b))
    for i = 1, #all, 2 do
      out[#out + 1] = fmt('%.0f', b * 64 + (tonumber(all[i]) or 0))
      out[#out + 1] = all[i + 1]
      bytes = bytes + #all[i + 1] + 16
    end
    b = b + 1
  end
  if b <= last then out[2] = fmt('%.0f', b) end
  return out
end

-- the same for the packs' live bytes
function scan.live(K, A)
  local T, b, last = K[1], tonumber(A[1]), tonumber(A[2])
  local out, stop = { 0, '' }, b + 2000
  while b <= last and b < stop and #out < 8000 do
    local all = call('HGETALL', T .. 'l' .. hex(b))
    for i = 1, #all, 2 do
      out[#out + 1] = fmt('%.0f', b * 64 + (tonumber(all[i]) or 0))
      out[#out + 1] = all[i + 1]
    end
    b = b + 1
  end
  if b <= last then out[2] = fmt('%.0f', b) end
  return out
end

-- --- repairs: each only if what is there is still what was seen

-- inode, its record, links, size ("": as they are), retry
function scan.fix_inode(K, A)
  local T, q = K[1], tonumber(A[1])
  local key, field = inode_key(T, q)
  if call('HGET', key, field) ~= A[2] then return EAGAIN end
  local r = parse(A[2])
  if not r then return EIO end
  if A[3] ~= '' then r.nlink = tonumber(A[3]) end
  if A[4] ~= '' then r.size = tonumber(A[4]) end
  put(T, q, r)
  return { 0 }
end

-- inode, its record, retry: it goes, with what may belong to it; bytes are left to gc
function scan.drop_inode(K, A)
  local T, q = K[1], tonumber(A[1])
  local key, field = inode_key(T, q)
  if call('HGET', key, field) ~= A[2] then return EAGAIN end
  call('HDEL', key, field)
  call('UNLINK', T .. 'u' .. hex(q), T .. 'y' .. hex(q))
  return { 0 }
end

-- inodes and bytes as counted, as they are, retry
function scan.fix_usage(K, A)
  local c = call('HMGET', K[1] .. 'c', 'i', 'b')
  if (c[1] or '0') ~= A[1] or (c[2] or '0') ~= A[2] then return EAGAIN end
  call('HSET', K[1] .. 'c', 'i', A[3], 'b', A[4])
  return { 0 }
end

-- pack, live bytes as counted ("": no counter), as they are, retry
function scan.fix_live(K, A)
  local T, pack = K[1], tonumber(A[1])
  local key, field = T .. 'l' .. hex(floor(pack / 64)), pack % 64
  if (call('HGET', key, field) or '') ~= A[2] then return EAGAIN end
  if A[3] == '0' then
    call('HDEL', key, field)
    call('SADD', T .. 'z', A[1])
  else
    call('HSET', key, field, A[3])
  end
  return { 0 }
end

-- from which item on, how many: extents of the garbage list that are counted still: "B" items, names of "X"
function scan.garbage(K, A)
  local from = tonumber(A[1])
  return { 0, unpack(call('LRANGE', K[1] .. 'g', from, from + tonumber(A[2]) - 1)) }
end
