/* Extended attributes, ACLs and inode flags against a real Redis, with 1 and with 8 shards. */
#include "test/meta_fixture.h"

#define ACL  META_XATTR_ACL
#define DACL META_XATTR_DEFAULT_ACL

struct fixture {
	struct server *s;
	struct meta *m;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->m = server_open(f->s, NULL, 0, 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->m);
	server_stop(f->s);
	free(f);
	return 0;
}

static int set_n(struct meta *m, silt_ino ino, const char *name, const void *v, size_t n,
                 unsigned how)
{
	return DO(meta_setxattr(m, ino, name, v, n, how, now(), meta_wait_done, &w_), NULL);
}

static int set(struct meta *m, silt_ino ino, const char *name, const char *v, unsigned how)
{
	return set_n(m, ino, name, v, strlen(v), how);
}

static int drop(struct meta *m, silt_ino ino, const char *name)
{
	return DO(meta_removexattr(m, ino, name, now(), meta_wait_done, &w_), NULL);
}

static int set_flags(struct meta *m, silt_ino ino, unsigned flags)
{
	return DO(meta_set_flags(m, ino, flags, now(), meta_wait_done, &w_), NULL);
}

static int setattr(struct meta *m, silt_ino ino, unsigned what, struct silt_attr v,
                   struct silt_time t)
{
	return DO(meta_setattr(m, ino, what, &v, t, meta_wait_done, &w_), NULL);
}

static int chmod_(struct meta *m, silt_ino ino, uint32_t mode)
{
	return setattr(m, ino, META_SET_MODE, (struct silt_attr){ .mode = mode }, now());
}

/* Fails unless the value is `want` (NULL: there is none). */
static void expect_n(struct meta *m, silt_ino ino, const char *name, const void *want, size_t n)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_getxattr(m, ino, name, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), want ? 0 : -ENODATA);
	if (want) {
		assert_int_equal(w.reply.len, n);
		assert_memory_equal(w.data, want, n);
	}
	meta_wait_free(&w);
}

static void expect(struct meta *m, silt_ino ino, const char *name, const char *want)
{
	expect_n(m, ino, name, want, want ? strlen(want) : 0);
}

/* The list as "name name ", sorted as Redis keeps it. */
static void expect_list(struct meta *m, silt_ino ino, const char *want)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_listxattr(m, ino, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	for (size_t i = 0; i < w.reply.len; i++)
		if (w.data[i] == '\0')
			w.data[i] = ' ';
	assert_string_equal(w.data ? w.data : "", want);
	meta_wait_free(&w);
}

/* "u::7 u:5:6 g::4 m::7 o::0" as the kernel writes it. */
static size_t acl_of(const char *text, uint8_t *out)
{
	static const char kinds[] = "ugmo";
	size_t n = 4;
	memcpy(out, "\2\0\0\0", 4);
	for (const char *p = text; *p;) {
		static const unsigned tags[] = { 1, 4, 16, 32 };
		unsigned tag = tags[strchr(kinds, *p) - kinds];
		uint32_t id = UINT32_MAX;
		p += 2;
		if (*p != ':') {
			id = (uint32_t)strtoul(p, (char **)&p, 10);
			tag *= 2;
		}
		unsigned perm = (unsigned)(p[1] - '0');
		p += p[2] ? 3 : 2;
		uint8_t e[8] = { (uint8_t)tag,        0,
			         (uint8_t)perm,       0,
			         (uint8_t)id,         (uint8_t)(id >> 8),
			         (uint8_t)(id >> 16), (uint8_t)(id >> 24) };
		memcpy(out + n, e, 8);
		n += 8;
	}
	return n;
}

static int set_acl(struct meta *m, silt_ino ino, const char *name, const char *text, unsigned how)
{
	uint8_t b[4096];
	return set_n(m, ino, name, b, acl_of(text, b), how);
}

static void expect_acl(struct meta *m, silt_ino ino, const char *name, const char *text)
{
	uint8_t b[4096];
	expect_n(m, ino, name, text ? b : NULL, text ? acl_of(text, b) : 0);
}

static silt_ino make_masked(struct meta *m, silt_ino dir, const char *name, uint32_t mode,
                            uint32_t umask)
{
	struct meta_make how = { .mode = mode,
		                 .umask = umask,
		                 .uid = 5,
		                 .gid = 6,
		                 .now = now(),
		                 .target = "t",
		                 .target_len = 1 };
	struct meta_reply r;
	assert_int_equal(DO(meta_make(m, dir, name, strlen(name), &how, meta_wait_done, &w_), &r),
	                 0);
	return r.inode.attr.ino;
}

static uint32_t perms(struct meta *m, silt_ino ino)
{
	return attr_of(m, ino).mode & 07777;
}

/* --- attributes --- */

static void test_values(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	silt_ino f = must_make(m, 1, "f", S_IFREG | 0644);
	silt_ino d = must_make(m, 1, "d", S_IFDIR | 0755);
	expect(m, f, "user.a", NULL);
	expect_list(m, f, "");
	assert_int_equal(drop(m, f, "user.a"), -ENODATA);
	assert_int_equal(set(m, f, "user.a", "1", META_XATTR_REPLACE), -ENODATA);
	struct silt_attr before = attr_of(m, f);
	assert_int_equal(before.flags, 0);
	assert_int_equal(set(m, f, "user.a", "1", META_XATTR_CREATE), 0);
	struct silt_attr after = attr_of(m, f);
	assert_int_equal(after.flags, SILT_FLAG_XATTRS);
	assert_true(after.ctime.sec > before.ctime.sec || after.ctime.nsec > before.ctime.nsec);
	assert_true(after.version == before.version && after.mtime.nsec == before.mtime.nsec);
	assert_int_equal(set(m, f, "user.a", "2", META_XATTR_CREATE), -EEXIST);
	assert_int_equal(set(m, f, "user.a", "", META_XATTR_REPLACE), 0);
	expect(m, f, "user.a", "");
	assert_int_equal(set_n(m, f, "user./\1\xff", "\0x\0", 3, 0), 0);
	expect_n(m, f, "user./\1\xff", "\0x\0", 3);
	expect_list(m, f, "user.a user./\1\xff ");
	expect(m, d, "user.a", NULL);
	assert_int_equal(set(m, d, "trusted.x", "dir", 0), 0);
	assert_int_equal(rename_(m, 1, "f", d, "g", 0, NULL), 0);
	expect(m, f, "user.a", "");
	assert_int_equal(drop(m, f, "user.a"), 0);
	assert_int_equal(attr_of(m, f).flags, SILT_FLAG_XATTRS);
	assert_int_equal(drop(m, f, "user./\1\xff"), 0);
	assert_int_equal(attr_of(m, f).flags, 0);
	assert_no_keys(m, "{*}u*f");
	assert_int_equal(set(m, f, "user.a", "again", 0), 0);
	assert_int_equal(unlink_(m, d, "g", false, NULL), 0);
	assert_int_equal(rmdir_(m, 1, "d"), 0);
	assert_no_keys(m, "{*}u*");
	assert_int_equal(set(m, f, "user.a", "gone", 0), -ENOENT);
	assert_int_equal(drop(m, f, "user.a"), -ENOENT);
}

static void test_limits(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	silt_ino f = must_make(m, 1, "f", S_IFREG | 0644);
	char name[300];
	char *big = malloc(65537);
	memset(big, 'x', 65537);
	memset(name, 'n', sizeof(name));
	name[256] = '\0';
	assert_int_equal(set(m, f, name, "v", 0), -ERANGE);
	name[255] = '\0';
	assert_int_equal(set(m, f, name, "v", 0), 0);
	expect(m, f, name, "v");
	assert_int_equal(set(m, f, "", "v", 0), -ERANGE);
	assert_int_equal(set_n(m, f, "user.big", big, 65537, 0), -E2BIG);
	assert_int_equal(set_n(m, f, "user.big", big, 65536, 0), 0);
	expect_n(m, f, "user.big", big, 65536);
	/* a MiB in all: 15 such values, not 16 */
	int n = 0, rc = 0;
	while (n < 30 &&
	       (snprintf(name, 20, "user.%d", n), rc = set_n(m, f, name, big, 65536, 0)) == 0)
		n++;
	assert_int_equal(rc, -ENOSPC);
	assert_int_equal(n, 14);
	assert_int_equal(set_n(m, f, "user.3", big, 65536, 0), 0); /* in place of itself */
	/* a list must fit into what a program can be given, 64 KiB: 255-byte names */
	silt_ino g = must_make(m, 1, "g", S_IFREG | 0644);
	memset(name, 'n', 255);
	name[255] = '\0';
	for (n = 0, rc = 0; n < 300 && !rc; n++) {
		snprintf(name, 10, "user.%04d", n);
		name[9] = '.';
		rc = set(m, g, name, "", 0);
	}
	assert_int_equal(rc, -ENOSPC);
	assert_int_equal(n - 1, 65472 / 256);
	struct meta_reply r;
	assert_int_equal(DO(meta_listxattr(m, g, meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.len, 65472 / 256 * 256);
	/* and at most 1,000 of them */
	silt_ino h = must_make(m, 1, "h", S_IFREG | 0644);
	for (n = 0, rc = 0; n < 1100 && !rc; n++) {
		snprintf(name, sizeof(name), "user.%d", n);
		rc = set(m, h, name, "", 0);
	}
	assert_int_equal(rc, -ENOSPC);
	assert_int_equal(n - 1, 1000);
	free(big);
}

/* The capabilities of a program go when its bytes or its owner change, nothing else does. */
static void test_capability(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	static const char cap[] = "security.capability";
	silt_ino f = must_make(m, 1, "f", S_IFREG | 0755);
	assert_int_equal(set(m, f, "user.a", "1", 0), 0);
	struct meta_commit c = { .ino = f,
		                 .mtime = now(),
		                 .extent = { .len = 10, .pack = 1, .stored = 10 } };
	assert_int_equal(set(m, f, cap, "c", 0), 0);
	assert_int_equal(chmod_(m, f, 0700), 0);
	expect(m, f, cap, "c");
	assert_int_equal(commit_(m, &c, 1), 0);
	assert_int_equal(c.err, 0);
	expect(m, f, cap, NULL);
	assert_int_equal(set(m, f, cap, "c", 0), 0);
	assert_int_equal(resize_(m, f, 5), 0);
	expect(m, f, cap, NULL);
	assert_int_equal(set(m, f, cap, "c", 0), 0);
	assert_int_equal(setattr(m, f, META_SET_UID | META_CLEAR_SUID,
	                         (struct silt_attr){ .uid = 9 }, now()),
	                 0);
	expect(m, f, cap, NULL);
	expect(m, f, "user.a", "1");
	assert_int_equal(set(m, f, cap, "c", 0), 0);
	assert_int_equal(drop(m, f, "user.a"), 0);
	assert_int_equal(resize_(m, f, 0), 0);
	assert_int_equal(attr_of(m, f).flags, 0);
}

/* --- ACLs --- */

static void test_access_acl(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	silt_ino f = must_make(m, 1, "f", S_IFREG | 0640);
	assert_int_equal(set_acl(m, f, ACL, "u::6 u:7:7 g::4 m::5 o::1", 0), 0);
	assert_int_equal(perms(m, f), 0651); /* the group's bits are the mask */
	assert_int_equal(attr_of(m, f).flags, SILT_FLAG_ACL);
	expect_list(m, f, "system.posix_acl_access ");
	assert_int_equal(chmod_(m, f, 0724), 0);
	expect_acl(m, f, ACL, "u::7 u:7:7 g::4 m::2 o::4");
	assert_int_equal(set(m, f, "user.a", "1", 0), 0);
	assert_int_equal(drop(m, f, ACL), 0);
	assert_int_equal(perms(m, f), 0724);
	assert_int_equal(attr_of(m, f).flags, SILT_FLAG_XATTRS);
	assert_int_equal(drop(m, f, ACL), 0);
	assert_int_equal(drop(m, f, DACL), 0);
	/* one that a mode can say isn't kept, with a mask it is */
	assert_int_equal(set_acl(m, f, ACL, "u::6 g::4 o::1", 0), 0);
	assert_int_equal(perms(m, f), 0641);
	expect_acl(m, f, ACL, NULL);
	assert_int_equal(set_acl(m, f, ACL, "u::6 g::4 m::6 o::1", 0), 0);
	assert_int_equal(perms(m, f), 0661);
	expect_acl(m, f, ACL, "u::6 g::4 m::6 o::1");
	assert_int_equal(set_acl(m, f, ACL, "u::7 g::7 o::0", 0), 0);
	assert_int_equal(attr_of(m, f).flags, SILT_FLAG_XATTRS);
	/* the set-group-ID bit goes when the caller may not give it */
	assert_int_equal(chmod_(m, f, 06755), 0);
	assert_int_equal(set_acl(m, f, ACL, "u::7 g::5 o::5", 0), 0);
	assert_int_equal(perms(m, f), 06755);
	assert_int_equal(set_acl(m, f, ACL, "u::7 u:3:4 g::5 m::5 o::5", META_XATTR_CLEAR_SGID), 0);
	assert_int_equal(perms(m, f), 04755);
	assert_int_equal(unlink_(m, 1, "f", false, NULL), 0);
	assert_no_keys(m, "{*}u*");
}

static void test_refused_acls(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	silt_ino f = must_make(m, 1, "f", S_IFREG | 0640);
	silt_ino d = must_make(m, 1, "d", S_IFDIR | 0755);
	silt_ino l = make_masked(m, 1, "l", S_IFLNK | 0777, 0);
	static const char *const bad[] = {
		"",
		"u::7",
		"u::7 g::7",
		"g::7 u::7 o::7",
		"u::7 u::7 g::7 o::7",
		"u::7 g::7 o::7 o::7",
		"u::7 u:1:7 g::7 o::7",
		"u::7 g::7 g:1:7 o::7",
		"u::7 g::7 u:1:7 m::7 o::7",
		"u::7 u:4294967295:7 g::7 m::7 o::7",
		"u::8 g::7 o::7",
		"u::7 g::7 m::7 m::7 o::7",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_int_equal(set_acl(m, f, ACL, bad[i], 0), -EINVAL);
		assert_int_equal(set_acl(m, d, DACL, bad[i], 0), -EINVAL);
	}
	uint8_t b[8192];
	size_t n = acl_of("u::7 g::7 o::7", b);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(set_n(m, f, ACL, b, cut, 0), -EINVAL);
	b[0] = 1;
	assert_int_equal(set_n(m, f, ACL, b, n, 0), -EINVAL);
	b[0] = 2;
	b[4] = 3; /* no such tag */
	assert_int_equal(set_n(m, f, ACL, b, n, 0), -EINVAL);
	assert_int_equal(set_acl(m, f, DACL, "u::7 g::7 o::7", 0), -EACCES);
	assert_int_equal(set_acl(m, l, ACL, "u::7 g::7 o::7", 0), -EOPNOTSUPP);
	/* what the kernel reads at once: 511 entries */
	n = acl_of("u::7", b);
	for (uint32_t id = 1; id <= 507; id++, n += 8)
		memcpy(b + n, (uint8_t[]){ 2, 0, 6, 0, (uint8_t)id, (uint8_t)(id >> 8), 0, 0 }, 8);
	uint8_t rest[64];
	size_t rn = acl_of("g::7 m::7 o::7", rest) - 4;
	memcpy(b + n, rest + 4, rn);
	assert_int_equal(n + rn, 4 + 511 * 8);
	assert_int_equal(set_n(m, f, ACL, b, n + rn, 0), 0);
	expect_n(m, f, ACL, b, n + rn);
	memcpy(b + n, (uint8_t[]){ 2, 0, 6, 0, 1, 1, 1, 0 }, 8);
	memcpy(b + n + 8, rest + 4, rn);
	assert_int_equal(set_n(m, f, ACL, b, n + 8 + rn, 0), -EINVAL);
}

static void test_inheritance(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	silt_ino d = must_make(m, 1, "d", S_IFDIR | 0755);
	assert_int_equal(perms(m, make_masked(m, d, "masked", S_IFREG | 06777, 027)), 06750);
	assert_int_equal(perms(m, make_masked(m, d, "maskeddir", S_IFDIR | 0777, 077)), 0700);
	assert_int_equal(set_acl(m, d, DACL, "u::7 u:7:5 g::5 m::7 o::4", 0), 0);
	assert_int_equal(attr_of(m, d).flags & ~SILT_FLAG_LEASED, SILT_FLAG_DEFAULT_ACL);
	assert_int_equal(perms(m, d), 0755);
	/* the umask does not count; what was asked for does */
	silt_ino f = make_masked(m, d, "f", S_IFREG | 04664, 077);
	assert_int_equal(perms(m, f), 04664);
	expect_acl(m, f, ACL, "u::6 u:7:5 g::5 m::6 o::4");
	expect_acl(m, f, DACL, NULL);
	silt_ino g = make_masked(m, d, "g", S_IFIFO | 0600, 0);
	expect_acl(m, g, ACL, "u::6 u:7:5 g::5 m::0 o::0");
	silt_ino l = make_masked(m, d, "l", S_IFLNK | 0777, 077);
	assert_true(perms(m, l) == 0777 && attr_of(m, l).flags == 0);
	/* directories in whatever shard inherit both, and hand them on */
	silt_ino at = d;
	for (int i = 0; i < 12; i++) {
		char name[8];
		snprintf(name, sizeof(name), "s%d", i);
		at = make_masked(m, at, name, S_IFDIR | 0770, 022);
		assert_int_equal(attr_of(m, at).flags & ~SILT_FLAG_LEASED,
		                 SILT_FLAG_ACL | SILT_FLAG_DEFAULT_ACL);
		assert_int_equal(perms(m, at), 0770);
		expect_acl(m, at, ACL, "u::7 u:7:5 g::5 m::7 o::0");
		expect_acl(m, at, DACL, "u::7 u:7:5 g::5 m::7 o::4");
	}
	/* a default ACL that says what a mode says leaves no access ACL */
	assert_int_equal(set_acl(m, d, DACL, "u::7 g::5 o::0", 0), 0);
	f = make_masked(m, d, "plain", S_IFREG | 0666, 0777);
	assert_int_equal(perms(m, f), 0640);
	assert_int_equal(attr_of(m, f).flags, 0);
	assert_int_equal(drop(m, d, DACL), 0);
	assert_int_equal(perms(m, make_masked(m, d, "after", S_IFREG | 0666, 022)), 0644);
}

/* --- flags --- */

static void test_immutable(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	struct silt_attr v = { .uid = 1, .size = 3, .mode = 0600 };
	silt_ino d = must_make(m, 1, "d", S_IFDIR | 0755);
	silt_ino f = must_make(m, d, "f", S_IFREG | 0644);
	must_make(m, d, "other", S_IFREG | 0644);
	struct meta_commit c = { .ino = f,
		                 .mtime = now(),
		                 .extent = { .len = 10, .pack = 1, .stored = 10 } };
	assert_int_equal(set_flags(m, f, SILT_FLAG_IMMUTABLE), 0);
	assert_int_equal(attr_of(m, f).flags, SILT_FLAG_IMMUTABLE);
	struct silt_attr before = attr_of(m, f);
	assert_int_equal(commit_(m, &c, 1), 0);
	assert_int_equal(c.err, -EPERM);
	for (unsigned bit = 1; bit <= META_CLEAR_SUID; bit *= 2)
		assert_int_equal(setattr(m, f, bit, v, now()), -EPERM);
	assert_int_equal(set(m, f, "user.a", "1", 0), -EPERM);
	assert_int_equal(drop(m, f, "user.a"), -EPERM);
	assert_int_equal(link_(m, f, d, "hard"), -EPERM);
	assert_int_equal(link_(m, f, 1, "hard"), -EPERM);
	assert_int_equal(unlink_(m, d, "f", false, NULL), -EPERM);
	assert_int_equal(rename_(m, d, "f", d, "new", 0, NULL), -EPERM);
	assert_int_equal(rename_(m, d, "f", 1, "new", 0, NULL), -EPERM);
	assert_int_equal(rename_(m, d, "other", d, "f", 0, NULL), -EPERM);
	assert_int_equal(rename_(m, d, "other", d, "f", META_RENAME_EXCHANGE, NULL), -EPERM);
	struct silt_attr after = attr_of(m, f);
	assert_memory_equal(&before, &after, sizeof(after));
	assert_int_equal(set_flags(m, f, 0), 0);
	assert_int_equal(attr_of(m, f).flags, 0);
	/* a directory: no names come or go; what its files are is their business */
	assert_int_equal(set_flags(m, d, SILT_FLAG_IMMUTABLE), 0);
	assert_int_equal(make(m, d, "new", S_IFREG | 0644, NULL), -EPERM);
	for (int i = 0; i < 8; i++) {
		char name[8];
		snprintf(name, sizeof(name), "n%d", i);
		assert_int_equal(make(m, d, name, S_IFDIR | 0755, NULL), -EPERM);
		assert_int_equal(make(m, 1, name, S_IFDIR | 0755, NULL), 0);
		assert_int_equal(rename_(m, 1, name, d, name, 0, NULL), -EPERM);
		assert_int_equal(rmdir_(m, 1, name), 0);
	}
	assert_int_equal(unlink_(m, d, "f", false, NULL), -EPERM);
	assert_int_equal(rename_(m, d, "f", 1, "f", 0, NULL), -EPERM);
	assert_int_equal(link_(m, f, d, "hard"), -EPERM);
	assert_int_equal(rmdir_(m, 1, "d"), -EPERM);
	assert_int_equal(rename_(m, 1, "d", 1, "e", 0, NULL), -EPERM);
	assert_int_equal(chmod_(m, f, 0600), 0);
	assert_int_equal(set_flags(m, d, 0), 0);
	assert_int_equal(unlink_(m, d, "f", false, NULL), 0);
	assert_int_equal(rename_(m, 1, "d", 1, "e", 0, NULL), 0);
}

static void test_append_only(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	struct silt_time t = now(), other = { 5, 5 };
	struct silt_attr v = { .uid = 1, .size = 3, .mode = 0600, .atime = t, .mtime = t };
	silt_ino d = must_make(m, 1, "d", S_IFDIR | 0755);
	silt_ino f = must_make(m, d, "f", S_IFREG | 0644);
	struct meta_commit c = { .ino = f,
		                 .mtime = t,
		                 .extent = { .len = 10, .pack = 1, .stored = 10 } };
	assert_int_equal(set_flags(m, f, SILT_FLAG_APPEND), 0);
	assert_int_equal(commit_(m, &c, 1), 0);
	assert_int_equal(c.err, 0);
	for (unsigned bit = 1; bit <= META_SET_SIZE; bit *= 2)
		assert_int_equal(setattr(m, f, bit, v, t), -EPERM);
	assert_int_equal(setattr(m, f, META_SET_ATIME | META_SET_MTIME, v, t), 0); /* touch */
	v.mtime = other;
	assert_int_equal(setattr(m, f, META_SET_MTIME, v, t), -EPERM);
	assert_int_equal(set(m, f, "user.a", "1", 0), -EPERM);
	assert_int_equal(unlink_(m, d, "f", false, NULL), -EPERM);
	assert_int_equal(link_(m, f, d, "hard"), -EPERM);
	assert_int_equal(set_flags(m, f, 0), 0);
	/* a directory: names may come, not go */
	assert_int_equal(set_flags(m, d, SILT_FLAG_APPEND), 0);
	must_make(m, d, "new", S_IFREG | 0644);
	must_make(m, 1, "outer", S_IFREG | 0644);
	assert_int_equal(link_(m, f, d, "hard"), 0);
	assert_int_equal(rename_(m, 1, "outer", d, "new", 0, NULL), -EPERM);
	assert_int_equal(rename_(m, 1, "outer", d, "outer", 0, NULL), 0);
	assert_int_equal(rename_(m, d, "outer", 1, "outer", 0, NULL), -EPERM);
	assert_int_equal(unlink_(m, d, "new", false, NULL), -EPERM);
	assert_int_equal(set_flags(m, d, SILT_FLAG_APPEND | SILT_FLAG_IMMUTABLE), 0);
	assert_int_equal(make(m, d, "newer", S_IFREG | 0644, NULL), -EPERM);
}

/* ... also where the name and the inode are in different shards. */
static void test_frozen_elsewhere(void **state)
{
	struct meta *m = ((struct fixture *)*state)->m;
	silt_ino at[16];
	for (int i = 0; i < 16; i++) {
		char name[8];
		snprintf(name, sizeof(name), "d%d", i);
		at[i] = must_make(m, 1, name, S_IFDIR | 0755);
	}
	for (int i = 0; i < 16; i++) {
		silt_ino f = must_make(m, at[0], "f", S_IFREG | 0644);
		must_make(m, at[i], "g", S_IFREG | 0644);
		assert_int_equal(rename_(m, at[0], "f", at[i], "f", 0, NULL), 0);
		assert_int_equal(set_flags(m, f, SILT_FLAG_IMMUTABLE), 0);
		assert_int_equal(unlink_(m, at[i], "f", false, NULL), -EPERM);
		assert_int_equal(rename_(m, at[i], "f", at[i], "h", 0, NULL), -EPERM);
		assert_int_equal(rename_(m, at[i], "g", at[i], "f", 0, NULL), -EPERM);
		for (int k = 0; k < 16; k++) {
			assert_int_equal(rename_(m, at[i], "f", at[k], "h", 0, NULL), -EPERM);
			if (k == i)
				continue;
			must_make(m, at[k], "over", S_IFREG | 0644);
			assert_int_equal(rename_(m, at[k], "over", at[i], "f", 0, NULL), -EPERM);
			assert_int_equal(unlink_(m, at[k], "over", false, NULL), 0);
		}
		assert_int_equal(attr_of(m, f).nlink, 1);
		assert_int_equal(set_flags(m, f, 0), 0);
		assert_int_equal(rename_(m, at[i], "g", at[i], "f", 0, NULL), 0);
		assert_int_equal(getattr_(m, f, NULL), -ENOENT);
		assert_int_equal(unlink_(m, at[i], "f", false, NULL), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE_1_AND_8_SHARDS(test_values, setup, teardown),
		CASE_1_AND_8_SHARDS(test_limits, setup, teardown),
		CASE_1_AND_8_SHARDS(test_capability, setup, teardown),
		CASE_1_AND_8_SHARDS(test_access_acl, setup, teardown),
		CASE_1_AND_8_SHARDS(test_refused_acls, setup, teardown),
		CASE_1_AND_8_SHARDS(test_inheritance, setup, teardown),
		CASE_1_AND_8_SHARDS(test_immutable, setup, teardown),
		CASE_1_AND_8_SHARDS(test_append_only, setup, teardown),
		CASE_1_AND_8_SHARDS(test_frozen_elsewhere, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
