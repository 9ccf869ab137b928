/* Pipes, and fifos, which are pipes with a name. A ring of bytes, which grows up to the pipe's capacity as it is needed;
 * what is not larger than PIPE_BUF is written in one piece. Source: pipe(7).
 */
#include "vfs.h"
#include "poll.h"
#include "printk.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define PIPE_BUF	4096
#define CAPACITY_DEFAULT 65536UL
#define CAPACITY_MAX	(1UL << 20)
#define PIPEFS_MAGIC	0x50495045
#define FIONREAD	0x541b

struct pipe {
	struct mutex lock;
	struct wait_queue wait;
	u8 *ring;			/* NULL: nothing was written yet */
	u64 size;			/* of the ring, a power of two or 0 */
	u64 capacity;			/* a power of two */
	u64 head, tail;			/* bytes written and read since the beginning */
	u32 readers, writers;
	u32 opened_readers, opened_writers;	/* ever, so that who opens a fifo notices who came and went */
};

static struct super *pipefs;

static struct pipe *pipe_new(void)
{
	struct pipe *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return NULL;
	mutex_init(&p->lock);
	init_wait_queue(&p->wait);
	p->capacity = CAPACITY_DEFAULT;
	return p;
}

static void pipe_free(struct pipe *p)
{
	vfree(p->ring);
	kfree(p);
}

static u64 used(const struct pipe *p) { return p->head - p->tail; }
static u64 room(const struct pipe *p) { return p->capacity - used(p); }
static struct pipe *pipe_of(struct file *f) { return f->inode->private; }

static bool readable(const struct pipe *p) { return used(p) || !READ_ONCE(p->writers); }
static bool writable(const struct pipe *p, u64 want) { return room(p) >= want || !READ_ONCE(p->readers); }

/* A ring of another size, with the same bytes; lock held. 0, -ENOMEM. */
static int resize(struct pipe *p, u64 size)
{
	u8 *ring = vmalloc(size);
	u64 count = used(p);

	if (!ring)
		return -ENOMEM;
	for (u64 i = 0; i < count; i++)
		ring[i] = p->ring[(p->tail + i) & (p->size - 1)];
	vfree(p->ring);
	p->ring = ring;
	p->size = size;
	p->tail = 0;
	p->head = count;
	return 0;
}

/* The ring holds so many bytes more; there is room for them. */
static int make_space(struct pipe *p, u64 more)
{
	u64 size = max(p->size, PAGE_SIZE);

	while (size < used(p) + more)
		size *= 2;
	return size == p->size ? 0 : resize(p, size);
}

static ssize_t read_buffers(struct file *f, struct buffers *b)
{
	struct pipe *p = pipe_of(f);
	u64 size = b->left, done = 0;
	ssize_t err = 0;

	if (!size)
		return 0;
	mutex_lock(&p->lock);
	while (!used(p)) {
		if (!p->writers)
			break;
		err = -EAGAIN;
		if (f->flags & O_NONBLOCK)
			break;
		mutex_unlock(&p->lock);
		err = wait_event_interruptible(&p->wait, readable(p));
		mutex_lock(&p->lock);
		if (err)
			break;
	}
	while (!err && done < size && used(p)) {
		u64 at = p->tail & (p->size - 1), n = min(min(size - done, used(p)), PAGE_SIZE - at % PAGE_SIZE);

		err = buffers_write(b, p->ring + at, n);
		if (err)
			break;
		p->tail += n;
		done += n;
	}
	mutex_unlock(&p->lock);
	if (done)
		wake_up(&p->wait);
	return done ? (ssize_t)done : err;
}

static ssize_t write_buffers(struct file *f, struct buffers *b)
{
	struct pipe *p = pipe_of(f);
	u64 size = b->left, done = 0;
	ssize_t err = 0;

	if (!size)
		return 0;
	mutex_lock(&p->lock);
	while (done < size) {
		u64 want = size <= PIPE_BUF ? size - done : 1, at, n;

		if (!p->readers) {
			send_signal(current_task(), SIGPIPE, NULL);
			err = -EPIPE;
			break;
		}
		if (room(p) < want) {
			err = -EAGAIN;
			if (f->flags & O_NONBLOCK)
				break;
			mutex_unlock(&p->lock);
			wake_up(&p->wait);
			err = wait_event_interruptible(&p->wait, writable(p, want));
			mutex_lock(&p->lock);
			if (err)
				break;
			continue;
		}
		n = min(min(size - done, room(p)), PAGE_SIZE);
		err = make_space(p, n);
		if (err)
			break;
		at = p->head & (p->size - 1);
		n = min(n, PAGE_SIZE - at % PAGE_SIZE);
		err = buffers_read(b, p->ring + at, n);
		if (err)
			break;
		p->head += n;
		done += n;
	}
	mutex_unlock(&p->lock);
	wake_up(&p->wait);
	return done ? (ssize_t)done : err;
}

static ssize_t pipe_vector(struct file *f, const struct iovec *vec, u64 count, bool write)
{
	struct buffers b;
	int err = buffers_init(&b, vec, count);

	return err ? err : write ? write_buffers(f, &b) : read_buffers(f, &b);
}

static ssize_t pipe_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct iovec v = { user, size };

	(void)pos;
	return pipe_vector(f, &v, 1, false);
}

static ssize_t pipe_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	struct iovec v = { (void *)user, size };

	(void)pos;
	return pipe_vector(f, &v, 1, true);
}

static u32 pipe_poll(struct file *f, struct poll_table *t)
{
	struct pipe *p = pipe_of(f);
	u32 events = 0;

	poll_wait(f, &p->wait, t);
	if (f->mode & FMODE_READ)
		events |= (used(p) ? EPOLLIN : 0) | (!p->writers && p->opened_writers ? EPOLLHUP : 0);
	if (f->mode & FMODE_WRITE)
		events |= (room(p) >= PIPE_BUF ? EPOLLOUT : 0) | (!p->readers ? EPOLLERR : 0);
	return events;
}

static s64 pipe_ioctl(struct file *f, u32 cmd, u64 arg)
{
	return cmd == FIONREAD ? put_user((int)used(pipe_of(f)), (int *)arg) : -ENOTTY;
}

static void pipe_add_end(struct pipe *p, u32 mode)
{
	p->readers += !!(mode & FMODE_READ);
	p->writers += !!(mode & FMODE_WRITE);
	p->opened_readers += !!(mode & FMODE_READ);
	p->opened_writers += !!(mode & FMODE_WRITE);
}

static void pipe_release(struct file *f)
{
	struct pipe *p = pipe_of(f);
	bool last;

	mutex_lock(&f->inode->lock);	/* against others who open the fifo */
	mutex_lock(&p->lock);
	p->readers -= !!(f->mode & FMODE_READ);
	p->writers -= !!(f->mode & FMODE_WRITE);
	last = !p->readers && !p->writers;
	if (last)
		f->inode->private = NULL;	/* a fifo that is opened again is empty */
	wake_up(&p->wait);
	mutex_unlock(&p->lock);
	mutex_unlock(&f->inode->lock);
	if (last)
		pipe_free(p);
}

/* A fifo: opening waits for the other end, as open(2) says. */
static int fifo_open(struct inode *inode, struct file *f)
{
	struct pipe *p;
	u32 seen;
	int err = 0;

	mutex_lock(&inode->lock);
	if (!inode->private)
		inode->private = pipe_new();
	p = inode->private;
	if (p)
		pipe_add_end(p, f->mode);
	mutex_unlock(&inode->lock);
	if (!p)
		return -ENOMEM;
	wake_up(&p->wait);
	if (f->mode == FMODE_READ && !p->writers && !(f->flags & O_NONBLOCK)) {
		seen = p->opened_writers;
		err = wait_event_interruptible(&p->wait, READ_ONCE(p->opened_writers) != seen);
	} else if (f->mode == FMODE_WRITE && !p->readers) {
		seen = p->opened_readers;
		err = f->flags & O_NONBLOCK ? -ENXIO :
		      wait_event_interruptible(&p->wait, READ_ONCE(p->opened_readers) != seen);
	}
	if (err) {
		f->inode = inode;
		pipe_release(f);
	}
	return err;
}

static void pipe_name(struct file *f, char *buf, u64 size)
{
	scnprintf(buf, size, "pipe:[%lu]", f->inode->ino);
}

/* A pipe without a name has been found in /proc: whoever opens it is one more at its end, and waits for nobody. */
static int pipe_open(struct inode *inode, struct file *f)
{
	int err = -ENXIO;

	mutex_lock(&inode->lock);
	if (inode->private) {		/* else its last end was closed meanwhile */
		pipe_add_end(inode->private, f->mode);
		err = 0;
	}
	mutex_unlock(&inode->lock);
	return err;
}

static const struct file_ops pipe_file_ops = {
	.open = pipe_open, .read = pipe_read, .write = pipe_write, .vector = pipe_vector, .poll = pipe_poll,
	.ioctl = pipe_ioctl, .release = pipe_release, .show_name = pipe_name,
};
const struct file_ops fifo_file_ops = {
	.open = fifo_open, .read = pipe_read, .write = pipe_write, .vector = pipe_vector, .poll = pipe_poll, .ioctl = pipe_ioctl,
	.release = pipe_release,
};

static bool is_pipe(struct file *f) { return f->ops == &pipe_file_ops || f->ops == &fifo_file_ops; }

s64 pipe_get_size(struct file *f) { return is_pipe(f) ? (s64)pipe_of(f)->capacity : -EBADF; }

int pipe_set_size(struct file *f, u64 size)
{
	struct pipe *p;
	u64 capacity = PAGE_SIZE;
	int err = 0;

	if (!is_pipe(f))
		return -EBADF;
	if (size > CAPACITY_MAX)
		return capable() ? -EINVAL : -EPERM;
	while (capacity < size)
		capacity *= 2;
	p = pipe_of(f);
	mutex_lock(&p->lock);
	if (used(p) > capacity)
		err = -EBUSY;
	else if (p->size > capacity)
		err = resize(p, capacity);
	if (!err)
		p->capacity = capacity;
	mutex_unlock(&p->lock);
	wake_up(&p->wait);
	return err ? err : (int)capacity;
}

static struct file *pipe_end(struct inode *inode, u32 flags)
{
	struct file *f = alloc_file_pseudo(inode, "", flags, &pipe_file_ops);

	if (!IS_ERR(f))
		pipe_add_end(inode->private, f->mode);
	return f;
}

static int make_pipe(struct file *ends[2], u32 flags)
{
	struct inode *inode;
	struct pipe *p;

	if (!pipefs)
		pipefs = super_create("pipefs", PIPEFS_MAGIC);
	inode = pipefs ? inode_new(pipefs, S_IFIFO | 0600) : NULL;
	p = inode ? pipe_new() : NULL;
	if (!p) {
		iput(inode);
		return -ENOMEM;
	}
	inode->private = p;
	inode->fops = &pipe_file_ops;
	iget(inode);
	ends[0] = pipe_end(inode, O_RDONLY | flags);
	if (IS_ERR(ends[0])) {
		iput(inode);
		pipe_free(p);
		return -ENOMEM;
	}
	ends[1] = pipe_end(inode, O_WRONLY | flags);
	if (IS_ERR(ends[1])) {
		fput(ends[0]);
		return -ENOMEM;
	}
	return 0;
}

static s64 do_pipe(int *user, u32 flags)
{
	struct file *ends[2];
	int fds[2], err;

	if (flags & ~(u32)(O_CLOEXEC | O_NONBLOCK | 040000))
		return -EINVAL;
	err = make_pipe(ends, flags & O_NONBLOCK);
	if (err)
		return err;
	fds[0] = get_unused_fd(flags);
	fds[1] = fds[0] < 0 ? -1 : get_unused_fd(flags);
	if (fds[1] >= 0 && !copy_to_user(user, fds, sizeof(fds))) {
		fd_install(fds[0], ends[0]);
		fd_install(fds[1], ends[1]);
		return 0;
	}
	err = fds[0] < 0 ? fds[0] : fds[1] < 0 ? fds[1] : -EFAULT;
	if (fds[0] >= 0)
		put_unused_fd(fds[0]);
	if (fds[1] >= 0)
		put_unused_fd(fds[1]);
	fput(ends[0]);
	fput(ends[1]);
	return err;
}
SYSCALL_DEFINE1(pipe, 22, int *, user)
{
	return do_pipe(user, 0);
}
SYSCALL_DEFINE2(pipe2, 293, int *, user, u32, flags)
{
	return do_pipe(user, flags);
}
