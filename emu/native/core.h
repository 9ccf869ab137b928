/* Native core of the CPU: what must run per block, per exception or per store.
 *
 * Unicorn 2.1.4 is QEMU's TCG with its board, its exception delivery and its clock taken out, but
 * with every internal function exported. This library is loaded before it, with global symbols, so
 * its definitions of some of the engine's own functions take the place of the originals; each
 * calls the original through `real`. Nothing here knows a device or a kernel: it counts
 * instructions, delivers exceptions and interrupts, keeps translated code and dirty pages honest,
 * and calls back for everything that happens per event.
 *
 * All state is per engine (`struct core`) or per memory (`struct ram`). Offsets into the engine's
 * structures are those of the 2.1.4 x86-64 wheel; emu/engine.py and emu/selfcheck.py verify every one
 * of them against the loaded library before a machine may run.
 */
#ifndef LUEMU_CORE_H
#define LUEMU_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define EXPORT __attribute__((visibility("default")))
#define NOINLINE __attribute__((noinline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define PAGE_SIZE 4096UL
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define NEVER (~0UL)
#define TLB_LIVE_MAX 65536u /* with this many translations the guest's TLB is flushed */

/* Offsets inside the engine (verified at start by emu/engine.py). */
enum {
    UC_CPU = 0x1b8,            /* uc_struct.cpu */
    CPU_CFLAGS_NEXT = 0x18,    /* CPUState.cflags_next_tb */
    CPU_MEM_IO_PC = 0x8178,    /* CPUState.mem_io_pc: host pc of the access being made */
    CPU_HALTED = 0x8198,       /* CPUState.halted */
    CPU_EXCEPTION = 0x81a0,    /* CPUState.exception_index */
    CPU_TO_ENV = 0x8a50,       /* X86CPU.env inside X86CPU */
    ENV_EFER = 0x250,
    ENV_FPSTT = 0x25c,
    ENV_FPUS = 0x260,
    ENV_FPUC = 0x262,
    ENV_FPTAGS = 0x264,
    ENV_FPREGS = 0x270,
    ENV_FPOP = 0x2f0,
    ENV_FPIP = 0x2f8,
    ENV_FPDP = 0x300,
    ENV_FP_FLAGS = 0x30a, /* fp_status.float_exception_flags */
    ENV_MXCSR = 0x330,
    ENV_XMM = 0x338, /* 64 bytes apart */
    ENV_STAR = 0x12d8,
    ENV_LSTAR = 0x12e8,
    ENV_CSTAR = 0x12f0,
    ENV_FMASK = 0x12f8,
    ENV_TSC_AUX = 0x1320,
    ENV_XCR0 = 0x1328,
    ENV_ERROR_CODE = 0x1508,
    ENV_EXC_IS_INT = 0x150c,
    ENV_DR = 0x1518,
    ENV_OLD_EXCEPTION = 0x1578,
};
_Static_assert(ENV_FPOP + 8 == ENV_FPIP && ENV_FPIP + 8 == ENV_FPDP, "the self-check sees FPIP and FPDP only");

struct segment {
    u32 selector, pad;
    u64 base;
    u32 limit, flags;
};

/* The architectural part of CPUX86State, from its start. */
struct env {
    u64 regs[16];
    u64 eip, eflags, cc_dst, cc_src, cc_src2;
    u32 cc_op;
    int32_t df;
    u32 hflags, hflags2;
    struct segment segs[6], ldt, tr, gdt, idt;
    u64 cr[5];
};

/* TranslationBlock, from its start. */
struct tb {
    u64 pc, cs_base;
    u32 flags;
    u16 size, icount;
    u32 cflags, dstate;
    u8 *code;
    u64 code_size;
    void *orig;
    u64 page_next[2];
    u64 page_addr[2];
};

/* DisasContextBase and TranslatorOps. */
struct disas {
    struct tb *tb;
    u64 pc_first, pc_next;
    u32 is_jmp;
    int num_insns, max_insns;
    bool singlestep;
};
struct ops {
    void (*init)(struct disas *, void *), (*tb_start)(struct disas *, void *);
    void (*insn_start)(struct disas *, void *);
    bool (*breakpoint)(struct disas *, void *, void *);
    void (*translate_insn)(struct disas *, void *), (*tb_stop)(struct disas *, void *);
    void *pc_sync, *more[2];
};

/* Virtual time of one machine, shared by its engines. */
struct clock {
    u64 ticks;    /* now, charged ahead to the end of the running block */
    u64 skipped;  /* ticks that passed while halted: ticks - skipped = instructions */
    u64 deadline; /* earliest device event */
};

/* Guest RAM of one machine. Pages are numbered by their offset in it: physical addresses below
 * 4 GiB, then what lies above. The engine numbers RAM in its own way (ram_addr): `block` translates. */
#define MAX_ENGINES 64
#define FAULTS_MAX 10000 /* exceptions in a row without an instruction that retires: no stack is that deep */
#define MAX_BLOCKS 3
struct ram_block {
    u64 ram_addr, offset, size;
};
struct ram {
    u8 *host;
    u64 size; /* bytes */
    u64 low;  /* bytes below 4 GiB; the rest is mapped from 4 GiB */
    u8 *code; /* per page: some engine has translated code from it */
    u8 *dirty; /* per page: written since the last drain */
    u32 *dirty_list; /* page numbers, in order of first write */
    u64 dirty_count;
    u64 engines;
    struct core *engine[MAX_ENGINES];
    struct ram_block block[MAX_BLOCKS];
};

/* Why a run ended. Mirrors emu.cpu.Reason. */
enum stop {
    STOP_NONE,
    STOP_END,        /* the requested tick */
    STOP_REQUEST,    /* a callback asked */
    STOP_DEADLOCK,   /* halted with interrupts off, or nothing pending */
    STOP_TRIPLE,     /* triple fault */
    STOP_ENGINE,     /* uc_emu_start failed: core->engine_error */
    STOP_INTERNAL,   /* a translation block could not be found: a bug here */
    STOP_LIVELOCK,   /* exceptions without end, and no instruction retires */
};

/* What a step of the outside world needs from Python. `now` is the exact tick. */
struct callbacks {
    u64 (*io_read)(u32 port, u32 size, u64 now);
    void (*io_write)(u32 port, u32 size, u32 value, u64 now);
    u64 (*mmio_read)(u64 addr, u32 size, u64 now);
    void (*mmio_write)(u64 addr, u32 size, u64 value, u64 now);
    void (*events)(u64 now);
    int (*acknowledge)(u64 now);                 /* vector, or -1 */
    int (*msr_read)(u32 msr, u64 *value, u64 now); /* 1 done, 0 #GP, -1 the engine's own */
    int (*msr_write)(u32 msr, u64 value, u64 now);
    u64 (*cr8_read)(u64 now);
    void (*cr8_write)(u64 value, u64 now);
    int (*probe)(u64 pc, u64 now); /* nonzero: stop before the instruction */
    void (*user)(u64 now);         /* user mode is entered, if core->watch_user */
};

struct cpuid_row {
    u32 leaf, subleaf, eax, ebx, ecx, edx;
};

struct tlb_entry {
    u64 key;   /* generation << 38 | mmu index << 36 | virtual page; 0 = free */
    u64 value; /* page frame << 12 | 1 GiB << 4 | large << 3 | prot; 0 = removed */
};

struct core {
    /* Shared with Python (emu/cpu.py, class CoreHeader): keep the order. */
    u64 end;          /* stop at this tick */
    u64 limit;        /* first tick that needs the slow path */
    u64 irq;          /* the INTR pin */
    u64 nmi;          /* a latched NMI */
    u64 stop;         /* enum stop */
    u64 stop_request; /* set by callbacks: stop at the next instruction boundary */
    u64 halted;
    u64 engine_error;
    u64 tsc_offset; /* guest TSC - ticks */
    u64 flush_at;   /* next tick of the TLB flush grid */
    u64 flush_grid; /* ticks between flushes */
    u64 strict;     /* stop at an access to nothing (set by Python through stop_request) */
    u64 uncounted;  /* no block callback (benchmarks): time stands still, nothing interrupts */
    u64 exceptions, interrupts, syscalls, io_reads, io_writes, mmio_reads, mmio_writes;
    u64 translations, splits, tlb_walks, tlb_refills, tlb_flushes, code_writes, jit_flushes;
    u64 exceptions_by_vector[32];
    u64 last_vector, last_error, last_rip, last_cr2; /* the last exception delivered */
    u64 user_left;    /* tick at which user mode was last left */
    u64 user_entered; /* tick at which it was first entered since the host wrote NEVER here */
    u64 watch_user;   /* call back at the next entry to user mode */
    /* Private. */
    struct clock *clock;
    struct ram *ram;
    struct callbacks cb;
    void *uc, *cpu, *tcg;
    struct env *env;
    struct tb *tb;  /* the running block */
    u32 tb_insns;   /* instructions of it that were charged ahead; 0: none running */
    u64 probed_at, probed_pc;
    u64 store_addr; /* virtual address of the store in a slow-path helper, or NEVER */
    u64 last_page; /* page of the last slow store */
    u64 faults_at, faults; /* tick of the last exception, and how many there were before it at that tick */
    uintptr_t last_ra;
    u64 data_breakpoints; /* DR6 bits of debug registers hit by the last instruction */
    bool triple, host_flush, from_itlb;
    bool stale; /* translations were dropped: the running block may lead into one of them */
    void *region[MAX_BLOCKS]; /* the engine's memory regions of RAM */
    void *(*real_mapping)(void *, u64);
    struct {
        uintptr_t ra;    /* where the block calls on_block from */
        struct tb *tb;
        u32 insns, unused; /* insns with MARK: take the slow path */
    } *blocks_seen;
    u64 probe_set[1024];
    u64 probe_count;
    struct cpuid_row cpuid[128];
    u32 cpuid_rows;
    struct tlb_entry *tlb;
    u64 tlb_size, tlb_used, tlb_live, tlb_gen;
    u32 tlb_attrs;
};

#define AT(type, base, off) (*(type *)((char *)(base) + (off)))
#define ENV_AT(c, type, off) AT(type, (c)->env, off)
#define CPU_AT(c, type, off) AT(type, (c)->cpu, off)

/* The engine's own functions, found by name once (core.c). */
#define REAL_FUNCTIONS(F)                                                                          \
    F(void, x86_cpu_do_interrupt, (void *))                                                        \
    F(void, do_interrupt_x86_hardirq, (void *, int, int))                                          \
    F(struct tb *, tcg_tb_lookup, (void *, uintptr_t))                                             \
    F(void, cpu_loop_exit, (void *))                                                               \
    F(void, cpu_loop_exit_noexc, (void *))                                                         \
    F(bool, cpu_restore_state, (void *, uintptr_t, bool))                                          \
    F(u64, helper_read_eflags, (void *))                                                           \
    F(void, raise_exception, (void *, int))                                                        \
    F(void, raise_exception_ra, (void *, int, uintptr_t))                                          \
    F(void, raise_exception_err_ra, (void *, int, int, uintptr_t))                                 \
    F(void, cpu_x86_cpuid, (void *, u32, u32, u32 *, u32 *, u32 *, u32 *))                         \
    F(u64, cpu_get_tsc, (void *))                                                                  \
    F(void, helper_wrmsr, (void *))                                                                \
    F(void, helper_rdmsr, (void *))                                                                \
    F(void, helper_write_crN, (void *, int, u64))                                                  \
    F(u64, helper_read_crN, (void *, int))                                                         \
    F(void, cpu_svm_check_intercept_param, (void *, u32, u64, uintptr_t))                          \
    F(void, helper_check_iob, (void *, u32))                                                       \
    F(void, helper_check_iow, (void *, u32))                                                       \
    F(void, helper_check_iol, (void *, u32))                                                       \
    F(u64, helper_inb, (void *, u32))                                                              \
    F(u64, helper_inw, (void *, u32))                                                              \
    F(u64, helper_inl, (void *, u32))                                                              \
    F(void, helper_outb, (void *, u32, u32))                                                       \
    F(void, helper_outw, (void *, u32, u32))                                                       \
    F(void, helper_outl, (void *, u32, u32))                                                       \
    F(void, helper_fxrstor, (void *, u64))                                                         \
    F(u64, cpu_ldq_data_ra, (void *, u64, uintptr_t))                                              \
    F(void, helper_sysret, (void *, int))                                                          \
    F(void, helper_iret_protected, (void *, int, int))                                             \
    F(void, helper_lret_protected, (void *, int, int))                                             \
    F(void, helper_sysexit, (void *, int))                                                         \
    F(void, helper_lcall_protected, (void *, int, u64, int, u64))                                  \
    F(void, helper_ltr, (void *, int))                                                             \
    F(void, helper_syscall, (void *, int))                                                         \
    F(void, helper_pause, (void *, int))                                                           \
    F(void, helper_rdpmc, (void *))                                                                \
    F(void, translator_loop, (struct ops *, struct disas *, void *, struct tb *, int))             \
    F(struct tb *, tb_gen_code, (void *, u64, u64, u32, int))                                      \
    F(void, tb_flush, (void *))                                                                    \
    F(u32, cpu_ldub_code, (void *, u64))                                                           \
    F(void, tlb_set_dirty, (void *, u64))                                                          \
    F(void, tlb_reset_dirty, (void *, u64, u64))                                                   \
    F(void, tlb_reset_dirty_by_vaddr, (void *, u64, u64))                                          \
    F(void, tb_invalidate_phys_page_fast, (void *, void *, u64, int, uintptr_t))                   \
    F(void, tb_invalidate_phys_page_range, (void *, u64, u64))                                     \
    F(void *, find_memory_mapping, (void *, u64))                                                  \
    F(u64, memory_region_get_ram_addr, (void *))                                                   \
    F(void, helper_ret_stb_mmu, (void *, u64, u8, u32, uintptr_t))                                 \
    F(void, helper_le_stw_mmu, (void *, u64, u16, u32, uintptr_t))                                 \
    F(void, helper_le_stl_mmu, (void *, u64, u32, u32, uintptr_t))                                 \
    F(void, helper_le_stq_mmu, (void *, u64, u64, u32, uintptr_t))                                 \
    F(bool, x86_cpu_tlb_fill, (void *, u64, int, int, int, bool, uintptr_t))                       \
    F(void, tlb_set_page_with_attrs, (void *, u64, u64, u32, int, int, u64))                       \
    F(void, tlb_flush_by_mmuidx, (void *, u16))                                                    \
    F(void, tlb_flush_page_by_mmuidx, (void *, u64, u16))                                          \
    F(void, tlb_flush, (void *))                                                                   \
    F(void, x86_stb_phys, (void *, u64, u8))                                                       \
    F(void, x86_stw_phys, (void *, u64, u32))                                                      \
    F(void, x86_stl_phys, (void *, u64, u32))                                                      \
    F(void, x86_stl_phys_notdirty, (void *, u64, u32))                                             \
    F(void, x86_stq_phys, (void *, u64, u64))                                                      \
    F(void, cpu_check_watchpoint, (void *, u64, u64, u32, int, uintptr_t))                         \
    F(void, update_fp_status, (void *))                                                            \
    F(void, update_mxcsr_status, (void *))                                                         \
    F(void, cpu_x86_update_dr7, (void *, u32))

/* x87 helpers that take nothing, or a register number, and may raise floating-point flags. */
#define X87_PLAIN(F)                                                                               \
    F(helper_fadd_ST0_FT0) F(helper_fsub_ST0_FT0) F(helper_fsubr_ST0_FT0) F(helper_fmul_ST0_FT0)   \
    F(helper_fdiv_ST0_FT0) F(helper_fdivr_ST0_FT0) F(helper_fcom_ST0_FT0) F(helper_fucom_ST0_FT0)  \
    F(helper_fcomi_ST0_FT0) F(helper_fucomi_ST0_FT0) F(helper_fsqrt) F(helper_frndint)             \
    F(helper_fscale) F(helper_fprem) F(helper_fprem1)
#define X87_REGISTER(F)                                                                            \
    F(helper_fadd_STN_ST0) F(helper_fsub_STN_ST0) F(helper_fsubr_STN_ST0) F(helper_fmul_STN_ST0)   \
    F(helper_fdiv_STN_ST0) F(helper_fdivr_STN_ST0)
#define X87_STORE(F)                                                                               \
    F(u32, helper_fsts_ST0) F(u64, helper_fstl_ST0) F(int32_t, helper_fist_ST0)                    \
    F(int32_t, helper_fistl_ST0) F(int64_t, helper_fistll_ST0) F(int32_t, helper_fistt_ST0)        \
    F(int32_t, helper_fisttl_ST0) F(int64_t, helper_fisttll_ST0)
#define X87_LOAD(F)                                                                                \
    F(u32, helper_flds_ST0) F(u32, helper_flds_FT0) F(u64, helper_fldl_ST0) F(u64, helper_fldl_FT0)

struct real {
#define FIELD(ret, name, args) ret(*name) args;
    REAL_FUNCTIONS(FIELD)
#undef FIELD
#define FIELD(name) void (*name)(void *);
    X87_PLAIN(FIELD)
#undef FIELD
#define FIELD(name) void (*name)(void *, int);
    X87_REGISTER(FIELD)
#undef FIELD
#define FIELD(type, name) type (*name)(void *);
    X87_STORE(FIELD)
#undef FIELD
#define FIELD(type, name) void (*name)(void *, type);
    X87_LOAD(FIELD)
#undef FIELD
    void (*qemu_system_reset_request)(void *);
    int (*uc_emu_start)(void *, u64, u64, u64, size_t);
    int (*uc_emu_stop)(void *);
};
extern struct real real;

struct core *core_of_cpu(void *cpu);
static inline struct core *core_of_env(void *env) {
    return core_of_cpu((char *)env - CPU_TO_ENV);
}

/* core.c */
void relimit(struct core *c);
void uncharge(struct core *c);
u64 now_at_eip(struct core *c);
static inline void user_left(struct core *c) {
    if ((c->env->hflags & 3) == 3) c->user_left = c->clock->ticks;
}
int insn_index_of_host(struct tb *tb, uintptr_t ra);
void leave_block(struct core *c, uintptr_t ra);
void forget_blocks(struct core *c);
/* memory.c */
void code_translated(struct core *c, u64 ram_addr);
void forget_code(struct core *c);
void ram_dirty(struct ram *m, u64 page);
void code_invalidate(struct ram *m, u64 page);
void *memory_mapping(void *uc, u64 addr);
/* tlb.c */
void itlb_flush(struct core *c);
bool itlb_init(struct core *c);
void engine_tlb_flush(struct core *c);

#endif
