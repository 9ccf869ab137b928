/* Temporary: weak stand-ins for parts that are not there yet, so that the kernel links. The real ones win; this file goes
 * when all are there. */
#include "arch.h"
#include "sched.h"
#include "page.h"
#include "memblock.h"
#include "init.h"
#include "fs.h"
#include "kho.h"
#include "panic.h"
#include "console.h"
#include "printk.h"
#include "workload.h"
#include "string.h"
#define W __attribute__((weak))
W void cpu_init(void){ wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NX); }
W int printk(const char*f,...){ char b[256]; va_list a; va_start(a,f); if (f[0]==1) f+=2; int n=vsnprintf(b,sizeof b,f,a); va_end(a); console_write(b,strlen(b)); return n;}
W void set_phase(const char*p){(void)p;}
W void panic(const char*f,...){ printk("panic: %s\n", f); for(;;) halt(); }
W void parse_params(void){} W void parse_early_params(void){}
W void kho_populate(phys_addr_t a,u64 b,phys_addr_t c,u64 d){(void)a;(void)b;(void)c;(void)d;}
W void mm_core_init(void){}
W void sched_init(void){} W void acpi_init(void){} W void interrupts_init(void){} W void time_init(void){}
W struct thread *kthread_create(void (*fn)(void *), void *arg, const char *name){(void)name; fn(arg); return (void*)1;}
W void cpu_idle(void){ printk("idle\n"); for(;;) { local_irq_disable(); halt();} }
W void ramfs_init(void){} W int cpio_unpack(const void*a,u64 n){(void)a;(void)n;return 0;}
W void show_mem(void){} W u64 nr_managed_pages(void){return 0;}
W void workload_run(void){ printk("workload\n"); for (;;) halt(); }
W u64 max_pfn;
static struct memblock_region r0[64], r1[64];
W struct memblock memblock={.memory={.regions=r0,.max=64},.reserved={.regions=r1,.max=64},.current_limit=~0UL};
W int memblock_add(phys_addr_t b,u64 s){ r0[memblock.memory.cnt++]=(struct memblock_region){b,s,0}; return 0;}
W int memblock_remove(phys_addr_t b,u64 s){(void)b;(void)s;return 0;}
W int memblock_reserve(phys_addr_t b,u64 s){(void)b;(void)s;return 0;}
W int memblock_reserve_kern(phys_addr_t b,u64 s){(void)b;(void)s;return 0;}
W u64 memblock_phys_mem_size(void){return 1;}
W phys_addr_t memblock_end_of_dram(void){struct memblock_region*r=&r0[memblock.memory.cnt-1];return r->base+r->size;}
W phys_addr_t memblock_phys_alloc_range(u64 s,u64 a,phys_addr_t b,phys_addr_t c){(void)a;(void)b;(void)c; static u64 n=0x4000000; n+=s; return n-s;}
W void *ioremap(phys_addr_t p,u64 n){return early_map(p,n);}
W bool vmemmap_fault(u64 a){(void)a;return false;}
static u8 pool[1<<19] __aligned(4096); static u64 used;
W void *get_free_pages(gfp_t g,unsigned int o){(void)g; void *p=pool+used; used+=PAGE_SIZE<<o; return used>sizeof pool?NULL:p;}
W void free_pages(void*p,unsigned int o){(void)p;(void)o;}
W void *kzalloc(u64 n,gfp_t g){(void)n; void *p=get_free_pages(g,0); if (p) memset(p,0,PAGE_SIZE); return p;}
W u32 kernel_generation(void){return 0;}
W const char *chain_line(void){return NULL;}
W void *kmalloc(u64 size, gfp_t gfp){ static char heap[1 << 16]; static u64 used; (void)gfp; size = ALIGN_UP(size, 16); if (used + size > sizeof heap) return NULL; used += size; return heap + used - size; }
W void kfree(const void *p){(void)p;}
W int kho_retrieve_subtree(const char*n,phys_addr_t*p,u64*s){(void)n;(void)p;(void)s;return -ENOENT;}
W bool memblock_next_free(phys_addr_t*c,phys_addr_t*s,phys_addr_t*e){(void)c;(void)s;(void)e;return false;}
W bool is_kho_boot(void){return false;} W bool kho_is_enabled(void){return false;}
W void kho_memory_init(void){}
W u64 kho_restored_pages(void){return 0;}
W void check_free_lists(void){} W u64 nr_free_pages(void){return 0;}
W int kexec_file_load(const void*k,u64 ks,const void*i,u64 is,const char*c){(void)k;(void)ks;(void)i;(void)is;(void)c;return -ENOSYS;}
W int kernel_kexec(void){return -ENOSYS;}
W void test_kho_save(void){}
W void machine_power_off(void){ outw(0x604, 0x2000); for(;;) halt(); }
W void mm_selftest(void){} W void sched_selftest(void){} W void kho_selftest(void){}
W struct kho_scratch *kho_scratch; W unsigned int kho_scratch_cnt;
W const struct reserve_mem_region *reserve_mem_get(unsigned int n){(void)n;return NULL;}
W phys_addr_t virt_to_phys(const volatile void *p){ return (u64)p - PAGE_OFFSET; }
W struct page *alloc_pages(gfp_t g,unsigned int o){(void)g;(void)o;return NULL;} W void __free_pages(struct page*p,unsigned int o){(void)p;(void)o;}
struct kexec_buf; struct kimage;
W int kho_locate_mem_hole(struct kexec_buf*b){(void)b;return 1;} W int kho_fill_kimage(struct kimage*i){(void)i;return 0;}
