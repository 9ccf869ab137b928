/* prctl: what a process sets about itself. Options that only others could make use of are remembered or refused. */
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define PR_SET_PDEATHSIG	1
#define PR_GET_PDEATHSIG	2
#define PR_GET_DUMPABLE		3
#define PR_SET_DUMPABLE		4
#define PR_GET_KEEPCAPS		7
#define PR_SET_KEEPCAPS		8
#define PR_GET_TIMING		13
#define PR_SET_NAME		15
#define PR_GET_NAME		16
#define PR_CAPBSET_READ		23
#define PR_CAPBSET_DROP		24
#define PR_GET_TSC		25
#define PR_SET_TIMERSLACK	29
#define PR_GET_TIMERSLACK	30
#define PR_SET_CHILD_SUBREAPER	36
#define PR_GET_CHILD_SUBREAPER	37
#define PR_SET_NO_NEW_PRIVS	38
#define PR_GET_NO_NEW_PRIVS	39
#define PR_GET_TID_ADDRESS	40
#define PR_GET_THP_DISABLE	42
#define CAPABILITY_LAST		40

#define NAME_SIZE		16
#define TIMERSLACK_NS		50000

/* The first thread's name is the process's. */
static s64 set_name(const char *user)
{
	struct task *t = current_task();
	char name[NAME_SIZE] = "";
	ssize_t n = strncpy_from_user(name, user, NAME_SIZE - 1);

	if (n < 0)
		return n;
	strscpy(current->name, name, NAME_SIZE);
	if (t->tid == t->process->pid)
		memcpy(t->process->comm, name, NAME_SIZE);
	return 0;
}

static s64 get_name(char *user)
{
	const struct task *t = current_task();
	char name[NAME_SIZE] = "";

	strscpy(name, t->tid == t->process->pid ? t->process->comm : current->name, NAME_SIZE);
	return copy_to_user(user, name, NAME_SIZE) ? -EFAULT : 0;
}

SYSCALL_DEFINE5(prctl, 157, int, option, u64, a2, u64, a3, u64, a4, u64, a5)
{
	struct task *t = current_task();
	struct process *p = t->process;

	switch (option) {
	case PR_SET_PDEATHSIG:
		if (a2 > NSIG)
			return -EINVAL;
		t->parent_death_signal = (int)a2;
		return 0;
	case PR_GET_PDEATHSIG:
		return put_user(t->parent_death_signal, (int *)a2);
	case PR_GET_DUMPABLE:
		return 1;
	case PR_SET_DUMPABLE:
		return a2 > 1 ? -EINVAL : 0;
	case PR_GET_KEEPCAPS:
	case PR_GET_TIMING:
		return 0;
	case PR_SET_KEEPCAPS:
		return a2 > 1 ? -EINVAL : 0;
	case PR_SET_NAME:
		return set_name((const char *)a2);
	case PR_GET_NAME:
		return get_name((char *)a2);
	case PR_CAPBSET_READ:
		return a2 > CAPABILITY_LAST ? -EINVAL : 1;
	case PR_CAPBSET_DROP:
		return !capable() ? -EPERM : a2 > CAPABILITY_LAST ? -EINVAL : 0;
	case PR_GET_TSC:
		return put_user(1, (int *)a2);
	case PR_SET_TIMERSLACK:
		return 0;
	case PR_GET_TIMERSLACK:
		return TIMERSLACK_NS;
	case PR_SET_CHILD_SUBREAPER:
		p->subreaper = a2 != 0;
		return 0;
	case PR_GET_CHILD_SUBREAPER:
		return put_user((int)p->subreaper, (int *)a2);
	case PR_SET_NO_NEW_PRIVS:
		if (a2 != 1 || a3 || a4 || a5)
			return -EINVAL;
		p->no_new_privs = true;
		return 0;
	case PR_GET_NO_NEW_PRIVS:
		return a2 || a3 || a4 || a5 ? -EINVAL : p->no_new_privs;
	case PR_GET_TID_ADDRESS:
		return put_user((u64)t->clear_tid, (u64 *)a2);
	case PR_GET_THP_DISABLE:
		return a2 || a3 || a4 || a5 ? -EINVAL : 0;
	default:
		return -EINVAL;
	}
}
