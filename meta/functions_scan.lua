
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
