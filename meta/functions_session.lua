
-- --- sessions (shard 0; cleanup in every shard)

local session = {}
local EBUSY = -16

-- token, ms (0: no longer): nobody else opens a session from now on, for the repair of a volume. EBUSY:
-- another one has it.
function session.exclude(K, A)
  local key = K[1] .. 'R'
  local holder = call('GET', key)
  if holder and holder ~= A[1] then return EBUSY end
  if A[2] == '0' then
    call('DEL', key)
  else
    call('SET', key, A[1], 'PX', A[2])
  end
  return { 0 }
end


-- JSON, time to live (ms), session ("0": a new one; else it comes back after it was taken for dead), the
-- number from which its requests go on then, retry.
-- Ids follow the clock: Redis that has lost its last second would else give one to a second client while
-- the first goes on with it, and each would take the other's locks and leases for its own.
function session.open(K, A)
  local T, sid = K[1], tonumber(A[3])
  if call('EXISTS', T .. 'R') == 1 then return EBUSY end
  if sid == 0 then
    local last = tonumber(call('HGET', T .. 'c', 's')) or 0
    sid = next_of(T, 's', math.max(now_ms() - last, 1))
  end
  call('HSET', T .. 'S', sid, A[1])
  call('ZADD', T .. 'H', now_ms() + tonumber(A[2]), sid)
  if A[3] ~= '0' then fence.lift(T, A[3], tonumber(A[4])) end
  return { 0, sid }
end

-- session, number, retry: the same in the other shards
function session.back(K, A)
  fence.lift(K[1], A[1], tonumber(A[2]))
  return { 0 }
end

-- session, time to live, retry. Reply: sessions that have expired; ENOENT: ours was taken for dead.
function session.beat(K, A)
  local T, now = K[1], now_ms()
  local _, dead = fence.get(T, A[1])
  if dead or call('HEXISTS', T .. 'S', A[1]) == 0 then return ENOENT end
  -- When nobody's heartbeat came through for a while, it was the server that was away (or its clock was
  -- set), and all its clients are as alive as they were: they get that time back.
  local last = tonumber(call('HGET', T .. 'c', 'h')) or now
  if math.abs(now - last) > tonumber(A[2]) / 2 then
    for _, sid in ipairs(call('ZRANGEBYSCORE', T .. 'H', fmt('%.0f', last), '+inf')) do
      call('ZINCRBY', T .. 'H', fmt('%.0f', now - last), sid)
    end
  end
  call('HSET', T .. 'c', 'h', fmt('%.0f', now))
  call('ZADD', T .. 'H', fmt('%.0f', now + tonumber(A[2])), A[1])
  return { 0, unpack(call('ZRANGEBYSCORE', T .. 'H', '-inf', fmt('%.0f', now), 'LIMIT', 0, 10)) }
end

-- dead session, time to live of the claim, retry: 0 when the caller may clean up after it, and the
-- number under which it died (see fence)
function session.claim(K, A)
  local T, now = K[1], now_ms()
  local score = call('ZSCORE', T .. 'H', A[1])
  if not score then return ENOENT end
  if tonumber(score) > now then return EAGAIN end
  local limit = fence.get(T, A[1])
  fence.fall(T, A[1], limit)
  call('ZADD', T .. 'H', fmt('%.0f', now + tonumber(A[2])), A[1])
  return { 0, fmt('%.0f', limit) }
end

-- session, the number under which it died ("": it ends by itself), retry: nothing of it is left
function session.close(K, A)
  local T = K[1]
  if not fence.holds(T, A[1], A[2]) then return ESTALE end
  local holder = call('GET', T .. 'L') or ''
  if string.match(holder, '^%d+') == A[1] then call('DEL', T .. 'L') end
  call('HDEL', T .. 'S', A[1])
  call('ZREM', T .. 'H', A[1])
  return { 0 }
end

function session.list(K)
  local T, out = K[1], { 0 }
  local all = call('HGETALL', T .. 'S')
  for i = 1, #all, 2 do
    out[#out + 1] = all[i]
    out[#out + 1] = all[i + 1]
    out[#out + 1] = call('ZSCORE', T .. 'H', all[i]) or '0'
  end
  return out
end

-- session, number (see session.close), cursor ("0" at first), retry: deletes files that it held open, a few
-- hundred at a time. Reply: the next cursor, "0" when that was all. What its requests were answered is kept
-- if it may come back and ask.
function session.sweep(K, A)
  local T = K[1]
  if not fence.holds(T, A[1], A[2]) then return ESTALE end
  local page = call('HSCAN', T .. 'o', A[3], 'COUNT', 200)
  local all = page[2]
  for i = 1, #all, 2 do
    if string.find(',' .. all[i + 1] .. ',', ',' .. A[1] .. ',', 1, true) then
      held.let_go(T, tonumber(all[i], 16), A[1])
    end
  end
  if page[1] ~= '0' then return { 0, page[1] } end
  call('HDEL', T .. 'V', A[1])
  for _, what in ipairs({ 'r', 'm' }) do
    if A[2] == '' then
      call('DEL', T .. what .. A[1])
    else
      call('EXPIRE', T .. what .. A[1], KEEP_S)
    end
  end
  return { 0, page[1] }
end

-- --- garbage: extents on their way out of the live counters

-- Reply: 0, or 1 if there are deleted files to be looked at (see held.list); the first item of the list and,
-- for a whole file, some of its windows.
local function garbage_peek(K, A)
  local T = K[1]
  local item, code = call('LINDEX', T .. 'g', 0), call('EXISTS', T .. 'D')
  if not item then return { code, '' } end
  if sub(item, 1, 1) == 'B' then return { code, item } end
  local key, out = T .. 'x' .. sub(item, 2), { code, item }
  local some, bytes = call('HRANDFIELD', key, 32), 0
  for _, w in ipairs(some) do
    local log = call('HGET', key, w)
    out[#out + 1] = w
    out[#out + 1] = log
    bytes = bytes + #log
    if bytes > 262144 then break end
  end
  return out
end

-- item, bytes of it that were worked off ("B"), number of windows, for each its name, its length and how
-- much of it was worked off, then pairs of pack and stored bytes, retry. Nothing happens unless all is as
-- it was: another client was quicker, or this was sent again.
local function garbage_done(K, A)
  local T, n = K[1], tonumber(A[3])
  local item, key = call('LINDEX', T .. 'g', 0), nil
  if item ~= A[1] then return { 0 } end
  if sub(item, 1, 1) == 'X' then
    key = T .. 'x' .. sub(item, 2)
    for i = 4, 3 + 3 * n, 3 do
      if call('HSTRLEN', key, A[i]) ~= tonumber(A[i + 1]) then return { 0 } end
    end
    for i = 4, 3 + 3 * n, 3 do
      if A[i + 1] == A[i + 2] then
        call('HDEL', key, A[i])
      else
        call('HSET', key, A[i], sub(call('HGET', key, A[i]), tonumber(A[i + 2]) + 1))
      end
    end
    if call('EXISTS', key) == 0 then call('LPOP', T .. 'g') end
  elseif tonumber(A[2]) < #item - 1 then
    call('LSET', T .. 'g', 0, 'B' .. sub(item, tonumber(A[2]) + 2))
  else
    call('LPOP', T .. 'g')
  end
  for i = 4 + 3 * n, #A - 1, 2 do live(T, tonumber(A[i]), -tonumber(A[i + 1])) end
  return { 0 }
end
