/* Users and groups. A program of user 0 may become anyone; others change between the ones they have. There are no
 * supplementary groups and no capabilities apart: user 0 has them all.
 */
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define KEEP		0xffffffffU		/* an id that is not to be changed */
#define NGROUPS_MAX	65536

SYSCALL_DEFINE0(getuid, 102) { return current_task()->cred.uid; }
SYSCALL_DEFINE0(getgid, 104) { return current_task()->cred.gid; }
SYSCALL_DEFINE0(geteuid, 107) { return current_task()->cred.euid; }
SYSCALL_DEFINE0(getegid, 108) { return current_task()->cred.egid; }

/* real, effective and saved id, which setres*id and friends change together */
struct ids {
	u32 *real, *effective, *saved, *fs;
};

static struct ids users(void)
{
	struct cred *c = &current_task()->cred;

	return (struct ids){ &c->uid, &c->euid, &c->suid, &c->fsuid };
}

static struct ids groups(void)
{
	struct cred *c = &current_task()->cred;

	return (struct ids){ &c->gid, &c->egid, &c->sgid, &c->fsgid };
}

static void assign(struct ids i, u32 real, u32 effective, u32 saved)
{
	*i.real = real;
	*i.effective = *i.fs = effective;
	*i.saved = saved;
}

static s64 set_id(struct ids i, u32 id)
{
	if (id == KEEP)
		return -EINVAL;
	if (capable())
		assign(i, id, id, id);
	else if (id == *i.real || id == *i.saved)
		*i.effective = *i.fs = id;
	else
		return -EPERM;
	return 0;
}

static s64 set_re(struct ids i, u32 real, u32 effective)
{
	u32 new_real = real == KEEP ? *i.real : real, new_effective = effective == KEEP ? *i.effective : effective;
	bool saved_follows = real != KEEP || (effective != KEEP && effective != *i.real);

	if (!capable()) {
		if (real != KEEP && real != *i.real && real != *i.effective)
			return -EPERM;
		if (effective != KEEP && effective != *i.real && effective != *i.effective && effective != *i.saved)
			return -EPERM;
	}
	assign(i, new_real, new_effective, saved_follows ? new_effective : *i.saved);
	return 0;
}

static bool is_one_of(struct ids i, u32 id)
{
	return id == KEEP || id == *i.real || id == *i.effective || id == *i.saved;
}

static s64 set_res(struct ids i, u32 real, u32 effective, u32 saved)
{
	if (!capable() && !(is_one_of(i, real) && is_one_of(i, effective) && is_one_of(i, saved)))
		return -EPERM;
	assign(i, real == KEEP ? *i.real : real, effective == KEEP ? *i.effective : effective,
	       saved == KEEP ? *i.saved : saved);
	return 0;
}

static s64 get_res(struct ids i, u32 *real, u32 *effective, u32 *saved)
{
	return put_user(*i.real, real) || put_user(*i.effective, effective) || put_user(*i.saved, saved) ? -EFAULT : 0;
}

/* Always the old one, whether it could be changed or not. */
static s64 set_fs(struct ids i, u32 id)
{
	u32 old = *i.fs;

	if (id != KEEP && (capable() || is_one_of(i, id)))
		*i.fs = id;
	return old;
}

SYSCALL_DEFINE1(setuid, 105, u32, id) { return set_id(users(), id); }
SYSCALL_DEFINE1(setgid, 106, u32, id) { return set_id(groups(), id); }
SYSCALL_DEFINE2(setreuid, 113, u32, real, u32, effective) { return set_re(users(), real, effective); }
SYSCALL_DEFINE2(setregid, 114, u32, real, u32, effective) { return set_re(groups(), real, effective); }
SYSCALL_DEFINE3(setresuid, 117, u32, real, u32, effective, u32, saved)
{
	return set_res(users(), real, effective, saved);
}
SYSCALL_DEFINE3(getresuid, 118, u32 *, real, u32 *, effective, u32 *, saved)
{
	return get_res(users(), real, effective, saved);
}
SYSCALL_DEFINE3(setresgid, 119, u32, real, u32, effective, u32, saved)
{
	return set_res(groups(), real, effective, saved);
}
SYSCALL_DEFINE3(getresgid, 120, u32 *, real, u32 *, effective, u32 *, saved)
{
	return get_res(groups(), real, effective, saved);
}
SYSCALL_DEFINE1(setfsuid, 122, u32, id) { return set_fs(users(), id); }
SYSCALL_DEFINE1(setfsgid, 123, u32, id) { return set_fs(groups(), id); }

SYSCALL_DEFINE2(getgroups, 115, int, size, u32 *, list)
{
	(void)list;
	return size < 0 ? -EINVAL : 0;
}

SYSCALL_DEFINE2(setgroups, 116, u32, size, const u32 *, list)
{
	(void)list;
	if (!capable())
		return -EPERM;
	return size > NGROUPS_MAX ? -EINVAL : 0;
}

/* ---- capabilities: all or none ---- */

#define CAPABILITY_V1	0x19980330
#define CAPABILITY_V2	0x20071026
#define CAPABILITY_V3	0x20080522
#define CAPABILITIES	0x1ffffffffffUL		/* 41 of them */

struct cap_header {
	u32 version;
	pid_t pid;
};
struct cap_data {
	u32 effective, permitted, inheritable;
};

/* 1 or 2 words of each set; -EINVAL with the version to use written back. */
static int cap_words(struct cap_header *header, struct cap_header *user)
{
	if (copy_from_user(header, user, sizeof(*header)))
		return -EFAULT;
	switch (header->version) {
	case CAPABILITY_V1:
		return 1;
	case CAPABILITY_V2:
	case CAPABILITY_V3:
		return 2;
	default:
		return put_user(CAPABILITY_V3, &user->version) ? -EFAULT : -EINVAL;
	}
}

SYSCALL_DEFINE2(capget, 125, struct cap_header *, uheader, struct cap_data *, udata)
{
	struct cap_header header;
	struct cap_data data[2] = { { 0 } };
	struct task *t;
	int words = cap_words(&header, uheader);
	bool all = capable();

	if (words < 0)
		return words == -EINVAL && !udata ? 0 : words;
	if (header.pid < 0)
		return -EINVAL;
	if (header.pid) {
		t = find_task(header.pid);
		if (!t)
			return -ESRCH;
		all = t->cred.euid == 0;
		task_put(t);
	}
	for (unsigned int i = 0; i < 2 && all; i++)
		data[i].effective = data[i].permitted = (u32)(CAPABILITIES >> (32 * i));
	return udata && copy_to_user(udata, data, (u64)words * sizeof(data[0])) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(capset, 126, struct cap_header *, uheader, const struct cap_data *, udata)
{
	struct cap_header header;
	struct cap_data data[2] = { { 0 } };
	int words = cap_words(&header, uheader);

	if (words < 0)
		return words;
	if (header.pid && header.pid != current_task()->tid)
		return -EPERM;
	if (copy_from_user(data, udata, (u64)words * sizeof(data[0])))
		return -EFAULT;
	if (capable())
		return 0;			/* none is taken away from user 0 */
	return data[0].permitted || data[1].permitted || data[0].effective || data[1].effective ? -EPERM : 0;
}
