//! The scripts that Redis runs. Each is one step for all other clients.

use std::sync::LazyLock;

use redis::Script;

/// The feed vouches for its epoch, and writes changes.
///
/// Keys: the head, then one per change. Arguments: epoch, 1 to begin it, the time at which this was sent by Redis' clock,
/// how late it may arrive, how long the head lives, the channel; then for each change version, time to keep, state.
/// Returns Redis' time and a word. A late call does nothing: a frozen server must not carry out old beats when it goes on.
pub(super) static FEED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local late = now - tonumber(ARGV[3])
if late > tonumber(ARGV[4]) or -late > tonumber(ARGV[4]) then return {now, 'late'} end
local head = redis.call('GET', KEYS[1])
if ARGV[2] == '0' and head and head ~= ARGV[1] then return {now, 'superseded'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[5])
for i = 2, #KEYS do
  local at = 7 + (i - 2) * 3
  local kept = redis.call('GETRANGE', KEYS[i], 0, 68)
  local epoch, version = string.match(kept, '^(%x+) (%d+) ')
  if epoch ~= ARGV[1] or tonumber(version) <= tonumber(ARGV[at]) then
    local line = ARGV[1] .. ' ' .. ARGV[at] .. ' 1 ' .. string.format('%.0f', now) .. '\n'
    redis.call('SET', KEYS[i], line .. ARGV[at + 2], 'PX', ARGV[at + 1])
    if ARGV[at + 2] ~= '' then redis.call('PUBLISH', ARGV[6], ARGV[at + 2]) end
  end
end
return {now, 'ok'}
",
    )
});

/// A reader puts in what the scheduler told it.
///
/// Keys: the head, then one per state. Arguments: epoch, the time of the look-up before, how long ago that may be, how long
/// to keep states; then for each state version, 1 if it waits in its queue, state. A state of the feed is kept, except
/// that its place in the queue becomes known.
pub(super) static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local late = now - tonumber(ARGV[2])
if late < 0 or late > tonumber(ARGV[3]) then return end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
for i = 2, #KEYS do
  local at = 5 + (i - 2) * 3
  local kept = redis.call('GETRANGE', KEYS[i], 0, 68)
  local epoch, version, fed = string.match(kept, '^(%x+) (%d+) (%d)')
  local source, is_newer = '0', true
  if epoch == ARGV[1] then
    local known, new = tonumber(version), tonumber(ARGV[at])
    is_newer = known < new or (known == new and (fed == '0' or ARGV[at + 1] == '1'))
    if known == new then source = fed end
  end
  if is_newer then
    local line = ARGV[1] .. ' ' .. ARGV[at] .. ' ' .. source .. ' ' .. string.format('%.0f', now) .. '\n'
    redis.call('SET', KEYS[i], line .. ARGV[at + 2], 'PX', ARGV[4])
  end
end
",
    )
});

/// Withdraws an epoch, if it is still the present one.
pub(super) static WITHDRAW: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end")
});
