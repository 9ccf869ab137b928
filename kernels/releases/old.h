/* The old release: top-down placement, last freed first used. */
#define RELEASE_NAME		"old"
/* The version begins like that of the Linux whose interfaces the kernel has: libraries ask for at least 3.2. */
#define RELEASE_VERSION		"7.2.1-luemu"
#define RELEASE_KHO_COMPATIBLE	"kho-v4"
#define RELEASE_LUO_COMPATIBLE	"luo-v5"
#define RELEASE_MEMFD_COMPATIBLE	"memfd-v2"

#define RELEASE_PREF_ADDRESS	0x1000000
#define KERNEL_BASE		0xffffffff80000000
#define PAGE_OFFSET		0xffff888000000000
#define VMALLOC_BASE		0xffffc90000000000
#define VMEMMAP_BASE		0xffffea0000000000

#define RELEASE_MEMBLOCK_TOP_DOWN	1	/* memblock prefers high addresses */
#define RELEASE_BUDDY_LIFO		1	/* freed blocks go to the front of their list */

#ifndef __ASSEMBLER__
#define RELEASE_PAGE_FIELDS		\
	u32 flags;			\
	s32 refcount;			\
	u64 private;			\
	struct list_head lru;		\
	void *mapping;			\
	u64 index;			\
	struct slab *slab;		\
	u8 order;

#define RELEASE_THREAD_FIELDS		\
	u64 rsp;			\
	void *stack;			\
	struct list_head run_list;	\
	struct list_head all_list;	\
	int tid;			\
	enum thread_state state;	\
	u64 wake_jiffies;		\
	u64 ticks;			\
	u64 fs_base;			\
	struct task *task;		\
	void (*fn)(void *);		\
	void *arg;			\
	char name[16];

#define RELEASE_FILE_FIELDS		\
	char *name;			\
	struct ramfs_file *parent;		\
	struct list_head siblings;	\
	struct list_head children;	\
	u32 mode;			\
	u64 ino;			\
	u64 size;			\
	const u8 *data;

#define RELEASE_OPEN_FILE_FIELDS	\
	u32 refs;			\
	u32 flags;			\
	u32 mode;			\
	struct dentry *dentry;		\
	struct inode *inode;		\
	const struct file_ops *ops;	\
	void *private;			\
	struct mutex pos_lock;		\
	loff_t pos;
#endif
