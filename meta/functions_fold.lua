
-- --- folding the logs of windows
--
-- A window's log grows by an entry with each commit. Whenever it grows past a power of two, from FOLD_FROM
-- bytes on, it is noted in Tq; a mount then reads it, works out which bytes of which entries still show,
-- and puts those in the place of what it has read (fold.c). What was committed meanwhile stays behind them.
-- An entry that is sent again after it was folded away is not found any more (see in_log): it was written
-- over by another client then, as its own waits for the answer, and either may come last.

local FOLD_FROM = 2048
local fold = {}

-- After the log of window `win` (text) of file q grew.
function fold.note(T, q, win, before, after)
  if after < FOLD_FROM then return end
  local _, a = math.frexp(before)
  local _, b = math.frexp(after)
  if a ~= b then call('SADD', T .. 'q', hex(q) .. ':' .. win) end
end

-- how many: name and log of some that were noted, 512 KiB or one of them at most
function fold.list(K, A)
  local T, out, bytes = K[1], { 0 }, 0
  for _, name in ipairs(call('SRANDMEMBER', T .. 'q', tonumber(A[1]))) do
    local q, win = string.match(name, '^(%x+):(%d+)$')
    local log = q and call('HGET', T .. 'x' .. q, win) or ''
    bytes = bytes + #log
    if bytes > 524288 and #out > 1 then break end
    out[#out + 1] = name
    out[#out + 1] = log
  end
  return out
end

-- name, how much of the log was read (0: it stays as it is), the SHA-1 of that, what takes its place, pairs of
-- pack and bytes to be added to its live bytes, retry. Nothing happens if the log is another by now.
function fold.apply(K, A)
  local T, seen = K[1], tonumber(A[2])
  call('SREM', T .. 'q', A[1])
  local q, win = string.match(A[1], '^(%x+):(%d+)$')
  if seen == 0 or not q then return { 0 } end
  local key = T .. 'x' .. q
  local log = call('HGET', key, win)
  if not log then return { 0 } end
  -- What it has grown by since was perhaps noted, and is off the list now.
  local same = #log >= seen and sha1hex(sub(log, 1, seen)) == A[3]
  if #log - (same and seen or 0) >= FOLD_FROM then call('SADD', T .. 'q', A[1]) end
  if not same then return { 0 } end
  log = A[4] .. sub(log, seen + 1)
  if log == '' then
    call('HDEL', key, win)
  else
    call('HSET', key, win, log)
  end
  for i = 5, #A - 1, 2 do live(T, tonumber(A[i]), tonumber(A[i + 1])) end
  return { 1 }
end
