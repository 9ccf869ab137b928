/* System calls on a path or a descriptor that do one thing to an inode: look it up, do it, let it go. */
#pragma once
#include "vfs.h"

#define ON_PATH(dirfd, upath, flags, expression) ({			\
		struct dentry *d;					\
		int ret_ = user_path(dirfd, upath, flags, &d);		\
		if (!ret_) {						\
			ret_ = (expression);				\
			dput(d);					\
		}							\
		ret_; })
#define ON_FD(fd, expression) ({					\
		struct file *f = fget(fd);				\
		int ret_ = -EBADF;					\
		if (f) {						\
			ret_ = (expression);				\
			fput(f);					\
		}							\
		ret_; })
#define FOLLOW(flags) (((flags) & AT_SYMLINK_NOFOLLOW ? 0 : LOOKUP_FOLLOW) | ((flags) & AT_EMPTY_PATH))
