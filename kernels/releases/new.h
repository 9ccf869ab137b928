/* The new release: everything that the old one leaves to the kernel is otherwise. */
#define RELEASE_NAME		"new"
#define RELEASE_VERSION		"7.2.2-luemu"
#define RELEASE_KHO_COMPATIBLE	"kho-v4"
#define RELEASE_LUO_COMPATIBLE	"luo-v5"
#define RELEASE_MEMFD_COMPATIBLE	"memfd-v2"

#define RELEASE_PREF_ADDRESS	0x2000000
#define KERNEL_BASE		0xffffffffa0000000
#define PAGE_OFFSET		0xffff900000000000
#define VMALLOC_BASE		0xffffd20000000000
#define VMEMMAP_BASE		0xffffe40000000000

#define RELEASE_MEMBLOCK_TOP_DOWN	0
#define RELEASE_BUDDY_LIFO		0

#ifndef __ASSEMBLER__
#define RELEASE_PAGE_FIELDS		\
	struct list_head lru;		\
	u64 index;			\
	union {				\
		void *mapping;		\
		struct slab *slab;	\
	};				\
	s32 refcount;			\
	u8 order;			\
	u32 flags;			\
	u64 private;

#define RELEASE_THREAD_FIELDS		\
	char name[24];			\
	int tid;			\
	enum thread_state state;	\
	struct list_head all_list;	\
	struct list_head run_list;	\
	u64 ticks;			\
	u64 wake_jiffies;		\
	void (*fn)(void *);		\
	void *arg;			\
	u64 fs_base;			\
	u64 switches;			\
	struct task *task;		\
	void *stack;			\
	u64 rsp;

#define RELEASE_FILE_FIELDS		\
	u64 ino;			\
	u64 size;			\
	const u8 *data;			\
	u32 mode;			\
	u32 links;			\
	struct ramfs_file *parent;		\
	struct list_head children;	\
	struct list_head siblings;	\
	u64 mtime;			\
	char *name;

#define RELEASE_OPEN_FILE_FIELDS	\
	loff_t pos;			\
	struct inode *inode;		\
	struct dentry *dentry;		\
	void *private;			\
	const struct file_ops *ops;	\
	u32 mode;			\
	u32 flags;			\
	u32 refs;			\
	u64 opened;			\
	struct mutex pos_lock;
#endif
