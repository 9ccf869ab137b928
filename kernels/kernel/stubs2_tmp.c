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
