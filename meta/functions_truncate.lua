
-- --- changing the size of a file
--
-- A call takes away CUT_MAX windows at most, or a little more than CUT_BYTES of their logs, and looks for
-- them at LOOK_MAX places: so a file that loses more of them shrinks in steps, from its end, each of
-- which is a truncation of its own. Nothing needs to be looked for when all of it goes.
local CUT_MAX, CUT_BYTES, LOOK_MAX = 500, 500000, 2000

-- Windows of a file of `old` bytes from `low` on, highest first, and the lowest that was looked at. Not
-- all of them need be there.
local function last_windows(key, low, old)
  local found, top = {}, floor(old / WINDOW)
  if call('HLEN', key) > LOOK_MAX then
    local stop = math.max(low, top - LOOK_MAX + 1)
    for w = top, stop, -1 do found[#found + 1] = w end
    return found, stop
  end
  for _, w in ipairs(call('HKEYS', key)) do
    w = tonumber(w)
    if w and w >= low then found[#found + 1] = w end
  end
  table.sort(found)
  for i = 1, floor(#found / 2) do
    found[i], found[#found + 1 - i] = found[#found + 1 - i], found[i]
  end
  return found, low
end

-- Takes windows away until the limits; returns the lowest that was looked at.
local function cut_windows(T, key, windows, stop)
  local n, bytes = 0, 0
  for i = 1, #windows, 100 do
    local last = math.min(i + 99, #windows)
    local logs = call('HMGET', key, unpack(windows, i, last))
    local names, garbage = {}, {}
    for j = i, last do
      local log = logs[j - i + 1]
      if log then
        names[#names + 1] = windows[j]
        garbage[#garbage + 1] = 'B' .. log
        bytes = bytes + #log
      end
    end
    if #names > 0 then
      call('RPUSH', T .. 'g', unpack(garbage))
      call('HDEL', key, unpack(names))
    end
    n = n + #names
    if (n >= CUT_MAX or bytes > CUT_BYTES) and last < #windows then return windows[last] end
  end
  return stop
end

-- Cuts the windows of a file of `old` bytes. Returns the size it has then: more than `size` when the
-- limits came first.
local function truncate_windows(T, q, size, old)
  local key = T .. 'x' .. hex(q)
  if size == 0 then
    local name = hex(q) .. ':' .. hex(next_of(T, 'g', 1))
    if call('EXISTS', key) == 1 then
      call('RENAME', key, T .. 'x' .. name)
      call('RPUSH', T .. 'g', 'X' .. name)
    end
    return 0
  end
  local first, rest = floor(size / WINDOW), size % WINDOW
  local low = rest == 0 and first or first + 1
  local stop = cut_windows(T, key, last_windows(key, low, old))
  if stop > low then return stop * WINDOW end
  local log = rest > 0 and call('HGET', key, first)
  if log then
    local hole = extent_put(size, low * WINDOW - size, 0, 0, 0, 1, 0)
    call('HSET', key, first, log .. hole)
    fold.note(T, q, fmt('%.0f', first), #log, #log + #hole)
  end
  return size
end

-- Cuts or extends a regular file. Changes r only (the caller puts it). Returns the new size: see
-- truncate_windows.
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
    size = truncate_windows(T, q, size, r.size)
    if size == 0 then r.tail = '\0' end
  end
  usage(T, 0, size - r.size)
  r.size = size
  return size
end
