/* Sessions: named sets of files, created by the agent in the old kernel and retrieved by it in the new one.
 *
 * A session is a file that the agent holds. While it is outgoing, its last close undoes everything; an incoming one's
 * last close is an implicit finish. Records are written at reboot only, into blocks that were allocated when the session
 * was created, so that serializing cannot fail for want of memory.
 *
 * Locks, in this order: serialize lock -> header->lock -> session->lock. All calls read-lock the first; serialization
 * write-locks it, and never lets go of it once it has succeeded: nothing changes any more, closing included.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"

#define HASH_SIZE 512

struct header {
	struct mutex lock;
	u64 count;
	struct list_head list;
	struct list_head hash[HASH_SIZE];
	struct kho_block_set blocks;
	u64 *sessions_pa;		/* outgoing: in luo_ser */
	bool active;			/* incoming: something was handed over */
};
static struct header incoming, outgoing;

/* ---- the serialize lock ---- */

static spinlock_t gate_lock = SPINLOCK_INIT;
static struct wait_queue gate = WAIT_QUEUE_INIT(gate);
static u64 readers;
static bool writing;

static bool try_read(void)
{
	bool ok;

	spin_lock(&gate_lock);
	ok = !writing;
	readers += ok;
	spin_unlock(&gate_lock);
	return ok;
}
static void read_lock(void) { wait_event(&gate, try_read()); }

static void read_unlock(void)
{
	spin_lock(&gate_lock);
	readers--;
	spin_unlock(&gate_lock);
	wake_up(&gate);
}

static bool no_readers(void) { return !READ_ONCE(readers); }
static bool try_write(void)
{
	bool ok;

	spin_lock(&gate_lock);
	ok = !writing;
	writing = true;			/* keeps new readers out; those inside are waited for */
	spin_unlock(&gate_lock);
	return ok;
}
static void write_lock(void)
{
	wait_event(&gate, try_write());
	wait_event(&gate, no_readers());
}

static void write_unlock(void)
{
	WRITE_ONCE(writing, false);
	wake_up(&gate);
}

/* ---- lists ---- */

static void header_init(struct header *h)
{
	mutex_init(&h->lock);
	INIT_LIST_HEAD(&h->list);
	for (u32 i = 0; i < HASH_SIZE; i++)
		INIT_LIST_HEAD(&h->hash[i]);
	kho_block_set_init(&h->blocks, sizeof(struct luo_session_ser));
}

static struct list_head *bucket(struct header *h, const char *name)
{
	u32 hash = 2166136261u;

	for (u32 i = 0; i < LUO_SESSION_NAME_LENGTH && name[i]; i++)
		hash = (hash ^ (u8)name[i]) * 16777619u;
	return &h->hash[hash % HASH_SIZE];
}

static struct luo_session *find(struct header *h, const char *name)
{
	struct list_head *head = bucket(h, name);
	struct luo_session *s;

	list_for_each_entry(s, head, hash)
		if (!strncmp(s->name, name, LUO_SESSION_NAME_LENGTH))
			return s;
	return NULL;
}

static void insert(struct header *h, struct luo_session *s)
{
	list_add_tail(&s->list, &h->list);
	list_add_tail(&s->hash, bucket(h, s->name));
	h->count++;
}

static void remove(struct header *h, struct luo_session *s)
{
	list_del(&s->list);
	list_del(&s->hash);
	h->count--;
}

static struct luo_session *session_alloc(const char *name)
{
	struct luo_session *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return NULL;
	strscpy(s->name, name, sizeof(s->name));
	mutex_init(&s->lock);
	luo_file_set_init(&s->file_set);
	return s;
}

/* ---- a session's file ---- */

static int finish_one(struct luo_session *s)
{
	int err;

	mutex_lock(&s->lock);
	err = luo_file_finish(&s->file_set);
	mutex_unlock(&s->lock);
	return err;
}

static void session_release(struct file *f)
{
	struct luo_session *s = f->private;
	struct header *h;

	if (!s)
		return;			/* the call that made the file failed, and has undone the rest */
	read_lock();
	h = s->retrieved ? &incoming : &outgoing;
	if (s->retrieved && finish_one(s)) {
		pr_warn("Unable to finish session [%s] on release\n", s->name);
		read_unlock();
		return;
	}
	if (!s->retrieved) {
		mutex_lock(&s->lock);
		luo_file_unpreserve_files(&s->file_set);
		mutex_unlock(&s->lock);
	}
	mutex_lock(&h->lock);
	remove(h, s);
	if (h == &outgoing)
		kho_block_set_shrink(&h->blocks, h->count);
	mutex_unlock(&h->lock);
	read_unlock();
	kfree(s);
}

static s64 preserve_fd(struct luo_session *s, void *cmd)
{
	struct liveupdate_fd_ioctl *c = cmd;
	int err;

	mutex_lock(&s->lock);
	err = luo_preserve_file(&s->file_set, c->token, c->fd);
	mutex_unlock(&s->lock);
	return err;
}

static s64 retrieve_fd(struct luo_session *s, void *cmd, void *user)
{
	struct liveupdate_fd_ioctl *c = cmd;
	struct file *file;
	int fd = get_unused_fd(O_CLOEXEC), err;

	if (fd < 0)
		return fd;
	mutex_lock(&s->lock);
	err = luo_retrieve_file(&s->file_set, c->token, &file);
	mutex_unlock(&s->lock);
	if (err) {
		put_unused_fd(fd);
		return err;
	}
	c->fd = fd;
	err = luo_respond(user, c->size, c, sizeof(*c));
	if (err) {
		fput(file);
		put_unused_fd(fd);
		return err;
	}
	fd_install(fd, file);
	return 0;
}

static s64 finish(struct luo_session *s, void *cmd)
{
	struct liveupdate_finish_ioctl *c = cmd;

	return c->reserved ? -EINVAL : finish_one(s);
}

static s64 get_name(struct luo_session *s, void *cmd)
{
	struct liveupdate_name_ioctl *c = cmd;

	if (c->reserved)
		return -EINVAL;
	memset(c->name, 0, sizeof(c->name));
	strscpy(c->name, s->name, sizeof(c->name));
	return 0;
}

enum { FOR_OUTGOING = 1, FOR_INCOMING = 2 };
static const struct {
	u32 cmd, size, whose;
} commands[] = {
	{ LIVEUPDATE_SESSION_PRESERVE_FD, sizeof(struct liveupdate_fd_ioctl), FOR_OUTGOING },
	{ LIVEUPDATE_SESSION_RETRIEVE_FD, sizeof(struct liveupdate_fd_ioctl), FOR_INCOMING },
	{ LIVEUPDATE_SESSION_FINISH, sizeof(struct liveupdate_finish_ioctl), FOR_INCOMING },
	{ LIVEUPDATE_SESSION_GET_NAME, sizeof(struct liveupdate_name_ioctl), FOR_OUTGOING | FOR_INCOMING },
};

static s64 session_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct luo_session *s = f->private;
	u32 nr = (cmd & 0xff) - (LIVEUPDATE_SESSION_PRESERVE_FD & 0xff), size;
	void *user = (void *)arg;
	union {
		struct liveupdate_fd_ioctl fd;
		struct liveupdate_finish_ioctl finish;
		struct liveupdate_name_ioctl name;
	} c;
	s64 ret;

	if (nr >= ARRAY_SIZE(commands))
		return -EINVAL;
	ret = get_user(size, (const u32 *)user);
	if (ret)
		return ret;
	if (cmd != commands[nr].cmd)
		return -ENOTTY;
	if (!(commands[nr].whose & (s->retrieved ? FOR_INCOMING : FOR_OUTGOING)) || size < commands[nr].size)
		return -EINVAL;
	ret = copy_struct_from_user(&c, commands[nr].size, user, size);
	if (ret)
		return ret;
	c.fd.size = size;
	read_lock();
	switch (cmd) {
	case LIVEUPDATE_SESSION_PRESERVE_FD:
		ret = preserve_fd(s, &c);
		break;
	case LIVEUPDATE_SESSION_RETRIEVE_FD:
		ret = retrieve_fd(s, &c, user);
		break;
	case LIVEUPDATE_SESSION_FINISH:
		ret = finish(s, &c);
		break;
	default:
		ret = get_name(s, &c);
	}
	if (!ret && cmd != LIVEUPDATE_SESSION_RETRIEVE_FD)
		ret = luo_respond(user, size, &c, commands[nr].size);
	read_unlock();
	return ret;
}

static const struct file_ops session_fops = { .release = session_release, .ioctl = session_ioctl };

static struct file *session_file(struct luo_session *s)
{
	char name[sizeof("[luo_session] ") + LUO_SESSION_NAME_LENGTH];

	scnprintf(name, sizeof(name), "[luo_session] %s", s->name);
	return anon_inode_getfile(name, &session_fops, s, O_RDWR);
}

/* ---- create and retrieve ---- */

static int session_create(const char *name, struct file **file)
{
	u64 len = strnlen(name, LUO_SESSION_NAME_LENGTH);
	struct luo_session *s;
	int err;

	PROBE1(luo, session_create, name);
	if (!len || len == LUO_SESSION_NAME_LENGTH)
		return -EINVAL;
	s = session_alloc(name);
	if (!s)
		return -ENOMEM;
	mutex_lock(&outgoing.lock);
	err = find(&outgoing, name) ? -EEXIST : kho_block_set_grow(&outgoing.blocks, outgoing.count + 1);
	if (!err)
		insert(&outgoing, s);
	mutex_unlock(&outgoing.lock);
	if (err) {
		kfree(s);
		return err;
	}
	*file = session_file(s);
	if (!IS_ERR(*file))
		return 0;
	mutex_lock(&outgoing.lock);
	remove(&outgoing, s);
	kho_block_set_shrink(&outgoing.blocks, outgoing.count);
	mutex_unlock(&outgoing.lock);
	kfree(s);
	return (int)PTR_ERR(*file);
}

static int session_retrieve(const char *name, struct file **file)
{
	struct luo_session *s;
	int err = 0;

	PROBE1(luo, session_retrieve, name);
	mutex_lock(&incoming.lock);
	s = find(&incoming, name);
	mutex_unlock(&incoming.lock);
	if (!s)
		return -ENOENT;
	if (s->refused)
		return -EIO;
	mutex_lock(&s->lock);
	if (s->retrieved)
		err = -EINVAL;
	else
		s->retrieved = true;
	mutex_unlock(&s->lock);
	if (err)
		return err;
	*file = session_file(s);
	if (!IS_ERR(*file))
		return 0;
	s->retrieved = false;
	return (int)PTR_ERR(*file);
}

/* The caller cannot be told about the session it has just got: it is as if it had not asked. (Linux finishes the session
 * then, and all that it holds is lost.) */
static void take_back(struct file *file, bool created)
{
	struct luo_session *s = file->private;

	if (!created) {
		s->retrieved = false;
		file->private = NULL;
	}
	fput(file);
}

int luo_ioctl_session(u32 cmd, void *user)
{
	struct liveupdate_session_ioctl c;
	struct file *file;
	bool create = cmd == LIVEUPDATE_IOCTL_CREATE_SESSION;
	int fd, err;
	u32 size;

	err = get_user(size, (const u32 *)user);
	if (err)
		return err;
	if (!create && cmd != LIVEUPDATE_IOCTL_RETRIEVE_SESSION)
		return -ENOTTY;
	if (size < sizeof(c))
		return -EINVAL;
	err = copy_struct_from_user(&c, sizeof(c), user, size);
	if (err)
		return err;
	fd = get_unused_fd(O_CLOEXEC);
	if (fd < 0)
		return fd;
	read_lock();
	err = create ? session_create(c.name, &file) : session_retrieve(c.name, &file);
	read_unlock();
	if (err)
		goto out_fd;
	c.size = size;
	c.fd = fd;
	err = luo_respond(user, size, &c, sizeof(c));
	if (err) {
		take_back(file, create);
		goto out_fd;
	}
	fd_install(fd, file);
	return 0;
out_fd:
	put_unused_fd(fd);
	return err;
}

/* ---- the previous kernel's sessions ---- */

void luo_session_init(void)
{
	header_init(&incoming);
	header_init(&outgoing);
}

int luo_session_setup_outgoing(u64 *sessions_pa)
{
	outgoing.sessions_pa = sessions_pa;
	return 0;
}

bool luo_has_outgoing_sessions(void) { return outgoing.count; }

int luo_session_setup_incoming(u64 sessions_pa)
{
	int err;

	if (!sessions_pa)
		return 0;
	err = kho_block_set_restore(&incoming.blocks, sessions_pa);
	incoming.active = !err;
	return err;
}

/* Why a record is no session, NULL if it is one. */
static const char *name_problem(const struct luo_session_ser *ser)
{
	u64 len = strnlen(ser->name, LUO_SESSION_NAME_LENGTH);

	if (!len)
		return "has no name";
	if (len == LUO_SESSION_NAME_LENGTH)
		return "has a name without an end";
	return find(&incoming, ser->name) ? "has the name of another one" : NULL;
}

static int deserialize_one(const struct luo_session_ser *ser)
{
	const char *problem = name_problem(ser);
	struct luo_session *s, *twin;
	int err;

	if (problem) {
		twin = strnlen(ser->name, LUO_SESSION_NAME_LENGTH) < LUO_SESSION_NAME_LENGTH ? find(&incoming, ser->name) : NULL;
		pr_err("a session %s [%s]: it is refused\n", problem, twin ? twin->name : "");
		if (twin)
			pr_warn("Failed to insert session [%s] %d\n", twin->name, -EEXIST);
		if (twin)
			twin->refused = true;	/* which of the two is meant cannot be known */
		return luo_strict_linux ? -EEXIST : 0;
	}
	s = session_alloc(ser->name);
	if (!s)
		return -ENOMEM;
	err = luo_file_deserialize(&s->file_set, &ser->file_set);
	if (err) {
		pr_warn("Failed to deserialize files for session [%s] %d\n", s->name, err);
		if (err == -ENOMEM || luo_strict_linux)
			return err;	/* what was built stays: nobody may free what it does not understand */
		s->refused = true;
	}
	insert(&incoming, s);
	return 0;
}

int luo_session_deserialize(void)
{
	static bool done;
	static int result;
	struct luo_session_ser *ser;
	struct kho_block_it it;

	PROBE(luo, session_deserialize);
	if (done)
		return result;
	done = true;
	if (!incoming.active)
		return 0;
	mutex_lock(&incoming.lock);
	kho_block_it_init(&it, &incoming.blocks);
	while (!result && (ser = kho_block_it_read_entry(&it)))
		result = deserialize_one(ser);
	if (!result)
		kho_block_set_destroy(&incoming.blocks);
	mutex_unlock(&incoming.lock);
	return result;
}

/* ---- reboot ---- */

static void unfreeze_before(struct luo_session *failed)
{
	struct luo_session *s = list_prev_entry(failed, list);

	for (; &s->list != &outgoing.list; s = list_prev_entry(s, list)) {
		luo_file_unfreeze(&s->file_set, &s->ser->file_set);
		memset(s->ser, 0, sizeof(*s->ser));
		s->ser = NULL;
		mutex_unlock(&s->lock);
	}
}

/* Freezes a session into its slot; its lock stays held until all are frozen. */
static int serialize_one(struct luo_session *s, struct luo_session_ser *ser)
{
	int err;

	mutex_lock(&s->lock);
	err = luo_file_freeze(&s->file_set, &ser->file_set);
	if (err) {
		mutex_unlock(&s->lock);
		return err;
	}
	memset(ser->name, 0, sizeof(ser->name));
	strscpy(ser->name, s->name, sizeof(ser->name));
	s->ser = ser;
	return 0;
}

int luo_session_serialize(void)
{
	struct luo_session *s;
	struct kho_block_it it;
	int err = 0;

	write_lock();
	mutex_lock(&outgoing.lock);
	PROBE(luo, session_serialize);
	*outgoing.sessions_pa = 0;
	kho_block_set_clear(&outgoing.blocks);
	kho_block_it_init(&it, &outgoing.blocks);
	list_for_each_entry(s, &outgoing.list, list) {
		struct luo_session_ser *ser = kho_block_it_reserve_entry(&it);

		err = WARN_ON(!ser) ? -ENOSPC : serialize_one(s, ser);
		if (err)
			break;
	}
	if (err) {
		unfreeze_before(s);
		kho_block_set_clear(&outgoing.blocks);
		mutex_unlock(&outgoing.lock);
		write_unlock();
		return err;
	}
	list_for_each_entry(s, &outgoing.list, list)
		mutex_unlock(&s->lock);
	if (outgoing.count)
		*outgoing.sessions_pa = outgoing.blocks.head;
	mutex_unlock(&outgoing.lock);
	return 0;
}
