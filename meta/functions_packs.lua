
-- --- packs whose last live byte is gone
--
-- Tz names packs whose live bytes came to 0 in this shard. One client of the volume at a time, the worker,
-- looks at them a while later: it asks all shards for their counters, and where all are 0 it buries the pack in
-- each (the counter becomes "-"), deletes the object and takes the name out of Tz. From the burial on no commit may
-- name the pack in that shard (ESTALE: its client stores the bytes anew), so none that was late, or shares
-- extents that it has read before, can point to an object that is gone. Shards that still use it are found
-- before or during the burials, and these are undone then.

local dead = {}

local function gone(T, pack)
  return pack ~= 0 and call('HGET', T .. 'l' .. hex(floor(pack / 64)), pack % 64) == '-'
end

-- session, ms: 1 when it is, or goes on to be, the worker for so long (shard 0)
function dead.worker(K, A)
  local key = K[1] .. 'B'
  local holder = call('GET', key)
  if holder and holder ~= A[1] then return { 0 } end
  call('SET', key, A[1], 'PX', A[2])
  return { 1 }
end

-- session, retry: it isn't any more
function dead.resign(K, A)
  if call('GET', K[1] .. 'B') == A[1] then call('DEL', K[1] .. 'B') end
  return { 0 }
end

-- cursor, how many: the next cursor, and about so many of Tz
function dead.list(K, A)
  local page = call('SSCAN', K[1] .. 'z', A[1], 'COUNT', A[2])
  local out = { 0, page[1] }
  for i, pack in ipairs(page[2]) do out[2 + i] = pack end -- a small set comes whole, however small that is set to be
  return out
end

-- packs: for each its live bytes here, "-" if it is buried, "" if there is no counter
function dead.count(K, A)
  local out = { 0 }
  for i = 1, #A do
    local pack = tonumber(A[i])
    out[i + 1] = call('HGET', K[1] .. 'l' .. hex(floor(pack / 64)), pack % 64) or ''
  end
  return out
end

-- packs, retry: for each "-" when it is buried, or its live bytes
function dead.bury(K, A)
  local out = { 0 }
  for i = 1, #A - 1 do
    local pack = tonumber(A[i])
    local key, field = K[1] .. 'l' .. hex(floor(pack / 64)), pack % 64
    local n = call('HGET', key, field)
    if not n or n == '-' or n == '0' then
      call('HSET', key, field, '-')
      n = '-'
    end
    out[i + 1] = n
  end
  return out
end

-- packs, retry: they may be named again
function dead.exhume(K, A)
  for i = 1, #A - 1 do
    local pack = tonumber(A[i])
    local key, field = K[1] .. 'l' .. hex(floor(pack / 64)), pack % 64
    if call('HGET', key, field) == '-' then call('HDEL', key, field) end
  end
  return { 0 }
end

-- packs, retry: out of Tz
function dead.forget(K, A)
  for i = 1, #A - 1 do call('SREM', K[1] .. 'z', A[i]) end
  return { 0 }
end
