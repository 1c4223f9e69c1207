//! What the server does in one go: scripts in Lua, over rows as [`super::row`] packs them.

/// Writes rows, each by its guard, with all that is derived from them, and publishes what has changed: the keys; of counts the users.
/// A guard is `n` (newer), `a` (absent) or
/// the revision that the row must have (empty: none). 1 for each row that is stored, else 0.
pub(super) const PUT: &str = r"
local p, sink, counts = KEYS[1], ARGV[1], ARGV[2] == '1'
local call, sub = redis.call, string.sub
local out, changed, keys, arrivals, alive, dead = {}, {}, {}, {}, {}, {}
local function tell(what) if what ~= '' then changed[#changed + 1] = what end end
local function at(kind, more) return p .. ':' .. kind .. ':' .. sink .. (more and (':' .. more) or '') end
local rows = at('row', '')
for i = 3, #ARGV, 5 do
  local guard, key, row = ARGV[i], ARGV[i+1], ARGV[i+2]
  local place = rows .. key
  local old, was, ok = '', ''
  if guard == '' or guard == 'a' then ok = call('SET', place, row, 'NX')
  else
    old = call('GETRANGE', place, 0, 48)
    if guard == 'n' then ok = old == '' or sub(old, 3, 22) < sub(row, 3, 22)
    else ok = sub(old, 23, 41) == guard end
    if ok then
      if counts and sub(old, 2, 2) == '0' then was = call('GETRANGE', place, 49, 48 + tonumber(sub(old, 42, 49), 16)) end
      call('SET', place, row)
    end
  end
  if ok then
    local gone = sub(row, 2, 2) ~= '0'
    if not counts then tell(key) end
    if old == '' then
      keys[#keys + 1] = 0
      keys[#keys + 1] = key
    end
    arrivals[#arrivals + 1] = ARGV[i+3]
    arrivals[#arrivals + 1] = key
    if not gone then
      alive[#alive + 1] = ARGV[i+4]
      alive[#alive + 1] = key
    elseif old ~= '' then
      dead[#dead + 1] = key
    end
    if counts then
      local is = gone and '' or sub(row, 50, 49 + tonumber(sub(row, 42, 49), 16))
      if was ~= is then
        tell(was)
        tell(is)
        if was ~= '' then
          call('SREM', at('unread', was), key)
          if tonumber(call('ZINCRBY', at('users'), -1, was)) <= 0 then call('ZREM', at('users'), was) end
        end
        if is ~= '' then
          if call('SISMEMBER', p .. ':read:' .. is, key) == 0 then call('SADD', at('unread', is), key) end
          call('ZINCRBY', at('users'), 1, is)
        end
      end
    end
  end
  out[#out + 1] = ok and 1 or 0
end
if #arrivals > 0 then
  if #keys > 0 then call('ZADD', at('keys'), unpack(keys)) end
  call('ZADD', at('arrival'), unpack(arrivals))
  if #alive > 0 then call('ZADD', at('time'), unpack(alive)) end
  if #dead > 0 then call('ZREM', at('time'), unpack(dead)) end
  if #changed > 0 then call('PUBLISH', at('changes'), cjson.encode(changed)) end
end
return out";

/// Takes away some rows: of all, or of those that arrived before. How many it found. `[]` is published: anything may be gone.
pub(super) const TAKE_AWAY: &str = r"
local p, sink, counts, before = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local function at(kind, more) return p .. ':' .. kind .. ':' .. sink .. (more and (':' .. more) or '') end
local keys
if before == '' then keys = redis.call('ZRANGE', at('keys'), 0, 255)
else keys = redis.call('ZRANGEBYSCORE', at('arrival'), '-inf', '(' .. before, 'LIMIT', 0, 256) end
for _, key in ipairs(keys) do
  local row = at('row', key)
  local old = counts == '1' and redis.call('GETRANGE', row, 0, 48) or ''
  if string.sub(old, 2, 2) == '0' then
    local user = redis.call('GETRANGE', row, 49, 48 + tonumber(string.sub(old, 42, 49), 16))
    if user ~= '' then
      redis.call('SREM', at('unread', user), key)
      if tonumber(redis.call('ZINCRBY', at('users'), -1, user)) <= 0 then redis.call('ZREM', at('users'), user) end
    end
  end
  redis.call('DEL', row)
  redis.call('ZREM', at('keys'), key)
  redis.call('ZREM', at('arrival'), key)
  redis.call('ZREM', at('time'), key)
end
if #keys > 0 then redis.call('PUBLISH', at('changes'), '[]') end
return #keys";

/// Marks a row as read, for all sinks that are named.
pub(super) const MARK: &str = r"
redis.call('SADD', KEYS[1] .. ':read:' .. ARGV[1], ARGV[2])
for i = 3, #ARGV do
  if redis.call('SREM', KEYS[1] .. ':unread:' .. ARGV[i] .. ':' .. ARGV[1], ARGV[2]) == 1 then
    redis.call('PUBLISH', KEYS[1] .. ':changes:' .. ARGV[i], cjson.encode({ ARGV[1] }))
  end
end
return 1";

/// A note, and which run of the server answers: each start of it draws a new id.
pub(super) const BEGIN: &str = r"
return { string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '', redis.call('HGET', KEYS[1] .. ':notes', ARGV[1]) }";

/// Stores a note, unless another run of the server answers than the one that rows were written to, or
/// the note that was there is gone (and the rows with it: `FLUSHALL`).
pub(super) const ADVANCE: &str = r"
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
if ARGV[3] ~= '' and ARGV[3] ~= run then return { 0, run } end
if ARGV[4] == '1' and redis.call('HEXISTS', KEYS[1] .. ':notes', ARGV[1]) == 0 then return { 0, run } end
redis.call('HSET', KEYS[1] .. ':notes', ARGV[1], ARGV[2])
return { 1, run }";

/// The form of a sink's rows, by one of them; none: there is no row.
pub(super) const FORM: &str = r"
local key = redis.call('ZRANGE', KEYS[1] .. ':keys:' .. ARGV[1], 0, 0)[1]
if not key then return nil end
local row = KEYS[1] .. ':row:' .. ARGV[1] .. ':' .. key
local kind = redis.call('TYPE', row).ok
if kind == 'string' then return redis.call('GETRANGE', row, 0, 0) end
return kind == 'hash' and '1' or nil";
