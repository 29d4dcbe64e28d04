
-- --- extended attributes, ACLs, flags
--
--   Tu<q>   hash   name -> value, of an inode that has any. ACLs are among them, under their names
--                  "system.posix_acl_access" and "system.posix_acl_default" and as the kernel writes
--                  them: u32 2, then for each entry u16 tag, u16 permissions, u32 uid or gid.
--
-- The flags of a record say which kinds there are, so an inode without any is never looked up here. An
-- access ACL that says no more than the mode is not kept. The permission bits of the mode and an access
-- ACL always agree: owner, others, and the mask (without one: the group).
--
-- An immutable or append-only inode (flags >= IMMUTABLE) is not removed, renamed, linked, nor given
-- another mode, owner or extended attribute; names may be added to an append-only directory.

local acl, xattr = {}, {}

do
  local USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32 -- tags, in their order
  local ACCESS_NAME, DEFAULT_NAME = 'system.posix_acl_access', 'system.posix_acl_default'
  local FLAG_OF = { [ACCESS_NAME] = ACL, [DEFAULT_NAME] = DEFAULT_ACL }
  local ACL_BYTES_MAX = 4096 -- more than that the kernel doesn't read
  local COUNT_MAX, NAMES_MAX, BYTES_MAX = 1000, 65472, 1048576 -- of one inode
  local VALUE_MAX, NAME_MAX = 65536, 255
  local EACCES, ENOSPC, ERANGE, E2BIG, ENODATA, EOPNOTSUPP = -13, -28, -34, -7, -61, -95

  local function key_of(T, q)
    return T .. 'u' .. hex(q)
  end

  -- Entries { tag, permissions, id }; nil: not a valid ACL.
  local function parse_acl(s)
    if #s < 28 or #s > ACL_BYTES_MAX or #s % 8 ~= 4 or sub(s, 1, 4) ~= '\2\0\0\0' then return nil end
    local out, seen, last = {}, {}, 0
    for p = 5, #s, 8 do
      local tag, perm, id = struct.unpack('<I2I2I4', s, p)
      local named = tag == USER or tag == GROUP
      if perm > 7 or tag < last or (tag == last and not named) then return nil end
      if named and id == 4294967295 then return nil end
      seen[tag], last = true, tag
      out[#out + 1] = { tag, perm, id }
    end
    for tag in pairs(seen) do
      if not (tag == USER_OBJ or tag == USER or tag == GROUP_OBJ or tag == GROUP or tag == MASK or
          tag == OTHER) then return nil end
    end
    if not (seen[USER_OBJ] and seen[GROUP_OBJ] and seen[OTHER]) then return nil end
    if (seen[USER] or seen[GROUP]) and not seen[MASK] then return nil end
    return out
  end

  local function build_acl(a)
    local t = { '\2\0\0\0' }
    for i, e in ipairs(a) do t[i + 1] = struct.pack('<I2I2I4', e[1], e[2], e[3]) end
    return table.concat(t)
  end

  -- The entries that a mode's permission bits stand for: of the owner, of the group class, of others.
  local function classes(a)
    local by = {}
    for _, e in ipairs(a) do by[e[1]] = e end
    return by[USER_OBJ], by[MASK] or by[GROUP_OBJ], by[OTHER]
  end

  local function kept_acl(T, q, name)
    local s = call('HGET', key_of(T, q), name)
    local a = s and parse_acl(s)
    if not a then damaged(name .. ' of inode ' .. shard_of(T) .. ':' .. fmt('%.0f', q)) end
    return a, s
  end

  local function with_perms(mode, u, g, o)
    return mode - mode % 512 + u[2] * 64 + g[2] * 8 + o[2]
  end

  -- Mode and access ACL ("": none) of a new inode, from what was asked for, the creator's umask, and the
  -- default ACL of its directory ("": it has none).
  function acl.inherit(kind, mode, umask, default)
    if kind == LNK then return mode, '' end
    if default == '' then return mode - bit.band(mode, umask), '' end
    local a = parse_acl(default) or damaged('default ACL')
    local u, g, o = classes(a)
    u[2] = bit.band(u[2], floor(mode / 64))
    g[2] = bit.band(g[2], floor(mode / 8))
    o[2] = bit.band(o[2], mode)
    return with_perms(mode, u, g, o), #a > 3 and build_acl(a) or ''
  end

  -- Default ACL of directory record d, or "".
  function acl.default_of(T, q, d)
    return has_flag(d, DEFAULT_ACL) and call('HGET', key_of(T, q), DEFAULT_NAME) or ''
  end

  -- Gives a new inode its ACLs. Changes r.flags only (the caller puts it).
  function acl.give(T, q, r, access, default)
    if access ~= '' then
      call('HSET', key_of(T, q), ACCESS_NAME, access)
      set_flag(r, ACL, true)
    end
    if default ~= '' and r.kind == DIR then
      call('HSET', key_of(T, q), DEFAULT_NAME, default)
      set_flag(r, DEFAULT_ACL, true)
    end
  end

  -- The mode of r was set: its access ACL follows.
  function acl.chmod(T, q, r)
    if not has_flag(r, ACL) then return end
    local a = kept_acl(T, q, ACCESS_NAME)
    local u, g, o = classes(a)
    u[2], g[2], o[2] = floor(r.mode / 64) % 8, floor(r.mode / 8) % 8, r.mode % 8
    call('HSET', key_of(T, q), ACCESS_NAME, build_acl(a))
  end

  -- Takes one attribute away; false: it was not there. Changes r.flags only.
  local function drop_one(T, q, r, name)
    local key, flag = key_of(T, q), FLAG_OF[name] or XATTRS
    if not has_flag(r, flag) then return false end
    local there = call('HDEL', key, name) == 1
    local acls = (has_flag(r, ACL) and 1 or 0) + (has_flag(r, DEFAULT_ACL) and 1 or 0)
    if flag ~= XATTRS or call('HLEN', key) <= acls then set_flag(r, flag, false) end
    return there
  end

  -- The bytes or the owner of r change: capabilities of the program that it was go.
  function xattr.kill_capability(T, q, r)
    if has_flag(r, XATTRS) then drop_one(T, q, r, 'security.capability') end
  end

  -- May an attribute `name` of `size` bytes be added, or put in place of the one that is there?
  local function room_for(key, name, size)
    if call('HLEN', key) < BYTES_MAX / (VALUE_MAX + NAME_MAX) - 1 then return true end
    local names, names_size, bytes, count = call('HKEYS', key), #name + 1, #name + size, 1
    for _, n in ipairs(names) do
      if n ~= name then
        count, names_size = count + 1, names_size + #n + 1
        bytes = bytes + #n + call('HSTRLEN', key, n)
      end
    end
    return count <= COUNT_MAX and names_size <= NAMES_MAX and bytes <= BYTES_MAX
  end

  -- inode, name. Reply: 0, value, record; 1, "", record: it has no such attribute
  function xattr.get(K, A)
    local T, q, name = K[1], tonumber(A[1]), A[2]
    local r, s = get(T, q)
    if not r then return ENOENT end
    local v, _
    if not has_flag(r, FLAG_OF[name] or XATTRS) then
      v = false
    elseif FLAG_OF[name] then
      _, v = kept_acl(T, q, name)
    else
      v = call('HGET', key_of(T, q), name)
    end
    return { v and 0 or 1, v or '', s }
  end

  -- inode. Reply: 0, names (a NUL after each), record
  function xattr.list(K, A)
    local T, q = K[1], tonumber(A[1])
    local r, s = get(T, q)
    if not r then return ENOENT end
    if r.flags % IMMUTABLE < XATTRS then return { 0, '', s } end
    local names = call('HKEYS', key_of(T, q))
    names[#names + 1] = ''
    return { 0, table.concat(names, '\0'), s }
  end

  local function set_acl(T, q, r, flag, name, value, clear_sgid)
    if flag == DEFAULT_ACL and r.kind ~= DIR then return EACCES end
    if r.kind == LNK then return EOPNOTSUPP end
    local a = parse_acl(value)
    if not a then return EINVAL end
    if flag == ACL then
      r.mode = with_perms(r.mode, classes(a))
      if clear_sgid and floor(r.mode / 1024) % 2 == 1 then r.mode = r.mode - 1024 end
      if #a == 3 then
        drop_one(T, q, r, name)
        return 0
      end
    end
    call('HSET', key_of(T, q), name, value)
    set_flag(r, flag, true)
    return 0
  end

  -- inode, name, value, how (1 create, 2 replace, 4 an ACL: clear set-group-ID), now, transaction, retry.
  -- Reply: 0, record
  function xattr.set(K, A)
    local T, q, name, value, how = K[1], tonumber(A[1]), A[2], A[3], tonumber(A[4])
    local before = A[7] == '1' and answered(T, A[6])
    if before then return before end
    local r = get(T, q)
    if not r then return ENOENT end
    if r.flags >= IMMUTABLE then return EPERM end
    if #name > NAME_MAX then return ERANGE end
    if #value > VALUE_MAX then return E2BIG end
    local key, flag = key_of(T, q), FLAG_OF[name]
    if flag then
      local e = set_acl(T, q, r, flag, name, value, how >= 4)
      if e ~= 0 then return e end
    else
      local there = has_flag(r, XATTRS) and call('HEXISTS', key, name) == 1
      if there and how % 2 == 1 then return EEXIST end
      if not there and floor(how / 2) % 2 == 1 then return ENODATA end
      if not room_for(key, name, #value) then return ENOSPC end
      call('HSET', key, name, value)
      set_flag(r, XATTRS, true)
    end
    r.ctime = A[5]
    return remember(T, A[6], { 0, put(T, q, r) })
  end

  -- inode, name, now, transaction, retry. Reply: 0, record. An ACL that is not there counts as removed.
  function xattr.remove(K, A)
    local T, q, name = K[1], tonumber(A[1]), A[2]
    local before, certain
    if A[5] == '1' then before, certain = answered(T, A[4]) end
    if before then return before end
    local r, s = get(T, q)
    if not r then return ENOENT end
    if r.flags >= IMMUTABLE then return EPERM end
    if not drop_one(T, q, r, name) then
      if FLAG_OF[name] or (A[5] == '1' and not certain) then return { 0, s } end
      return ENODATA
    end
    r.ctime = A[3]
    return remember(T, A[4], { 0, put(T, q, r) })
  end

  -- inode, flags (immutable, append-only), now, retry. Reply: 0, record
  function xattr.set_flags(K, A)
    local T, q = K[1], tonumber(A[1])
    local r = get(T, q)
    if not r then return ENOENT end
    r.flags, r.ctime = r.flags % IMMUTABLE + tonumber(A[2]), A[3]
    return { 0, put(T, q, r) }
  end
end
