/* Temporary: weak stand-ins for the parts of userspace that are not there yet. The real ones win; this file goes when
 * all are there. */
#include "task.h"
#include "vfs.h"
#include "signal.h"
#include "page.h"
#define W __attribute__((weak))
W struct file *fget(int fd) { (void)fd; return NULL; }
W void fput(struct file *f) { (void)f; }
W void file_get(struct file *f) { (void)f; }
W int get_unused_fd(u32 flags) { (void)flags; return -EMFILE; }
W void put_unused_fd(int fd) { (void)fd; }
W void fd_install(int fd, struct file *f) { (void)fd; (void)f; }
W struct file *alloc_file_pseudo(struct inode *i, const char *n, u32 flags, const struct file_ops *ops) { (void)i; (void)n; (void)flags; (void)ops; return ERR_PTR(-ENOMEM); }
W struct inode *inode_new(struct super *s, u32 mode) { (void)s; (void)mode; return NULL; }
W void iput(struct inode *i) { (void)i; }
W struct super *super_create(const char *type, u64 magic) { (void)type; (void)magic; return NULL; }
W loff_t generic_llseek(struct file *f, loff_t off, int whence) { (void)f; (void)off; (void)whence; return -ESPIPE; }
W struct task *current_task(void) { return NULL; }
W void force_signal(int sig, int code, u64 addr) { (void)sig; (void)code; (void)addr; }
W struct process *find_process(pid_t pid) { (void)pid; return NULL; }
W void process_get(struct process *p) { (void)p; }
W void process_put(struct process *p) { (void)p; }
W struct mm *process_get_mm(struct process *p) { (void)p; return NULL; }
W struct files *process_get_files(struct process *p) { (void)p; return NULL; }
W struct fs *process_get_fs(struct process *p) { (void)p; return NULL; }
W char process_state(struct process *p) { (void)p; return 'R'; }
W bool capable(void) { return true; }
W u64 ktime_get_real_ns(void) { return 0; }
W int pipe_set_size(struct file *f, u64 size) { (void)f; (void)size; return -EBADF; }
W s64 pipe_get_size(struct file *f) { (void)f; return -EBADF; }
W const struct file_ops fifo_file_ops;
struct poll_table; struct wait_queue;
W void poll_wait(struct file *f, struct wait_queue *q, struct poll_table *t) { (void)f; (void)q; (void)t; }
W void tty_leader_exit(struct process *leader) { (void)leader; }
