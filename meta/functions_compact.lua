
-- --- compaction
--
-- Packs that may be worth it are noted in sets Tn<p/512>, whose p/512 are in Tn: one that began with few live
-- bytes in this shard (it may be a small object), and one whose live bytes have shrunk past 2^n or 1.5 * 2^n. The
-- worker looks at them a while later, copies the runs of some that are still used into one new pack, stores
-- that, and puts the new places into the extents, each of which must still be what it was: as it stands in the
-- inode's record or, with the whole log, in a window. What has changed meanwhile keeps the old pack alive. So
-- no client can tell but by the packs that it reads, and the old packs die as any other.

local compact = {}

-- cursor: the next cursor, and some of those noted, a few thousand at most
function compact.list(K, A)
  local page = call('SSCAN', K[1] .. 'n', A[1], 'COUNT', 8)
  local out = { 0, page[1] }
  for _, part in ipairs(page[2]) do
    if #out > 4096 then
      out[2] = '0' -- the others' turn comes when these are off the list
      break
    end
    local n = tonumber(part) -- else it is damaged, and noted anew when something shrinks
    if n then
      for _, pack in ipairs(call('SMEMBERS', K[1] .. 'n' .. hex(n))) do out[#out + 1] = pack end
    end
  end
  return out
end

-- packs, retry: off the list
function compact.forget(K, A)
  for i = 1, #A - 1 do
    local part = floor(tonumber(A[i]) / 512)
    local key = K[1] .. 'n' .. hex(part)
    call('SREM', key, A[i])
    if call('EXISTS', key) == 0 then call('SREM', K[1] .. 'n', fmt('%.0f', part)) end
  end
  return { 0 }
end

local function regular(T, q) -- its record, unless that is damaged, or none of a file
  local ok, r = pcall(get, T, q)
  return ok and r and r.kind == REG and r or nil
end

-- items of: inode, window. For each 1 and the extent of the file, or 2 and the window's log, or "" when there
-- is neither; 512 KiB or one at most.
function compact.extents(K, A)
  local T, out, bytes = K[1], { 0 }, 0
  for i = 1, #A, 2 do
    local q, s = tonumber(A[i]), ''
    local r = regular(T, q)
    if r and byte(r.tail, 1) == 1 then
      s = r.tail
    elseif r and byte(r.tail, 1) == 2 then
      local log = call('HGET', T .. 'x' .. hex(q), A[i + 1])
      if log then s = '\2' .. log end
    end
    bytes = bytes + #s
    if bytes > 524288 and #out > 1 then break end
    out[#out + 1] = s
  end
  return out
end

-- new pack, items of: inode, its extent, the one that takes its place, the old one's pack, stored bytes;
-- retry. Reply: how many were changed. ESTALE: the new pack was buried.
function compact.move(K, A)
  local T, to, moved, old, all = K[1], tonumber(A[1]), 0, {}, 0
  if gone(T, to) then return ESTALE end
  for i = 2, #A - 1, 5 do
    local q = tonumber(A[i])
    local r = regular(T, q)
    local now = r and byte(r.tail, 1) == 1 and sub(r.tail, 2)
    if now == A[i + 1] then
      local from, stored = tonumber(A[i + 3]), tonumber(A[i + 4])
      r.tail = '\1' .. A[i + 2]
      put(T, q, r)
      old[from] = (old[from] or 0) + stored
      all = all + stored
    end
    if now == A[i + 1] or now == A[i + 2] then moved = moved + 1 end
  end
  live(T, to, all)
  for pack, stored in pairs(old) do live(T, pack, -stored) end
  return { 0, moved }
end

-- new pack, then as fold.apply
function compact.move_log(K, A)
  if gone(K[1], tonumber(A[1])) then return ESTALE end
  table.remove(A, 1)
  return fold.apply(K, A)
end

-- --- dictionaries (cache/dict.h), shard 0: Tc has the last number, k, and the current one, K

local dictionary = {}

function dictionary.current(K, A)
  return { 0, call('HGET', K[1] .. 'c', 'K') or '0' }
end

-- retry: a number for a new one
function dictionary.new(K, A)
  return { 0, fmt('%.0f', call('HINCRBY', K[1] .. 'c', 'k', 1)) }
end

-- number, retry: it is the current one
function dictionary.use(K, A)
  call('HSET', K[1] .. 'c', 'K', A[1])
  return { 0 }
end
