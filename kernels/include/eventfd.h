/* eventfd(2) for the kernel (fs/eventfd.c). */
#pragma once
#include "types.h"

struct file;
struct file *eventfd_get(int fd);	/* a reference; ERR_PTR(-EBADF: not open; -EINVAL: something else) */
void eventfd_signal(struct file *f);	/* adds 1; from interrupts too */

/* From now on nothing stays counted: `listener` is called instead, by whoever writes or signals. NULL: no longer. -EBUSY
 * if there is another. */
int eventfd_listen(struct file *f, void (*listener)(void *data), void *data);
