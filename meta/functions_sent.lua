
-- --- requests sent again
--
-- Some functions see from what is there that they have been applied already. Others can't: the name that
-- unlink finds may be somebody else's new file, the size that setattr finds somebody else's new bytes.
-- So they keep their reply, under the request's number, for a while: 128 numbers of a session, more than
-- it has under way at a time. make, the most frequent, keeps only the number of the inode that it made.

local REQUESTS = 128

local function request_of(T, id) -- key, number; nil for a client without a session
  local sid, n = string.match(id, '^(%d+)%.(%x+)$')
  if sid and sid ~= '0' then return T .. 'r' .. sid, tonumber(n, 16) end
end

local function remember(T, id, reply)
  local key, n = request_of(T, id)
  if key then call('HSET', key, n % REQUESTS, cmsgpack.pack(n, reply)) end
  return reply
end

-- What `id` was answered, or nil and whether that is for certain: then it was not executed.
local function answered(T, id)
  local key, n = request_of(T, id)
  if not key then return nil, false end
  local s = call('HGET', key, n % REQUESTS)
  if not s then return nil, true end
  local ok, kept, reply = pcall(cmsgpack.unpack, s)
  if not ok or type(kept) ~= 'number' or (type(reply) ~= 'number' and type(reply) ~= 'table') then
    damaged('reply of request ' .. id)
  end
  if kept == n then return reply end
  return nil, kept < n
end

-- That `session` made inode q; asked when it sends the request again and nothing is there.
local function remember_made(T, session, q)
  if session ~= '0' then
    call('SETRANGE', T .. 'm' .. session, q % REQUESTS * 6, struct.pack('<I6', q))
  end
end

local function has_made(T, session, q)
  local at = q % REQUESTS * 6
  return call('GETRANGE', T .. 'm' .. session, at, at + 5) == struct.pack('<I6', q)
end

-- --- sessions taken for dead
--
-- A client that sends no heartbeat may live: stopped, or cut off. While others clean up after it, and
-- when it goes on, what it sends must neither repeat nor undo what they did. So each shard is told of a
-- session's death before anything is done for it there: from then on it can't begin an operation across
-- shards in this shard, whose intent nobody would look for. (Steps of one that it has begun are kept
-- apart by their own records, see functions_tx.lua; what else it sends is one call each.) A session that
-- comes back goes on with higher numbers and tells each shard from which one on: what it began before
-- stays refused, and who still cleans up after its death is refused as well.
--
--   TF   hash   session -> number, 1: dead | 0, ms when that was noted: requests with lower numbers, and
--               all of a dead session, begin nothing here

-- For how long a client may have been away, in seconds; what was noted for it goes then.
local KEEP_S = 60 * 86400

local fence = {}

function fence.get(T, sid) -- number, dead
  local limit, dead = string.match(call('HGET', T .. 'F', sid) or '', '^(%d+) ([01]) %d+$')
  return tonumber(limit) or 0, dead == '1'
end

function fence.set(T, sid, limit, dead)
  local now, some = now_ms(), call('HRANDFIELD', T .. 'F', 3, 'WITHVALUES')
  for i = 1, #some, 2 do
    local at = string.match(some[i + 1], ' (%d+)$')
    if not at or at + KEEP_S * 1000 < now then call('HDEL', T .. 'F', some[i]) end
  end
  call('HSET', T .. 'F', sid, fmt('%.0f %d %.0f', limit, dead and 1 or 0, now))
end

-- May an operation across shards begin under this name?
function fence.passes(T, tx)
  local sid, n = string.match(tx, '^(%d+)%.(%x+)$')
  if not sid or sid == '0' then return true end
  local limit, dead = fence.get(T, sid)
  return not dead and tonumber(n, 16) >= limit
end

-- Is the session dead still, for one who saw it die under `limit`? "": it ends by itself.
function fence.holds(T, sid, limit)
  if limit == '' then return true end
  local now, dead = fence.get(T, sid)
  return dead and now <= tonumber(limit)
end

function fence.fall(T, sid, limit) -- false: it came back
  if fence.get(T, sid) > limit then return false end
  fence.set(T, sid, limit, true)
  return true
end

function fence.lift(T, sid, limit) -- and what it was answered is kept for as long as it lives
  fence.set(T, sid, limit, false)
  call('PERSIST', T .. 'r' .. sid)
  call('PERSIST', T .. 'm' .. sid)
end
