/* Between fs/proc.c and fs/proc_pid.c. */
#pragma once
#include "types.h"

struct dentry;
void proc_pid_init(struct dentry *root);
