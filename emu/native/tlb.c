/* The guest's TLB: unbounded between flushes, and part of the machine's state.
 *
 * What a TLB remembers is visible to a guest that edits page tables without INVLPG: stale
 * translations, accessed and dirty bits that are not set again. The engine's own TLB forgets
 * entries when two pages collide, resizes itself by the host's clock, and is refilled whenever we
 * stop and look a block up again. So it is only a cache here, of this table: a translation is
 * walked once and then stays until the guest flushes it, until the table is full, or until the
 * next tick of a fixed grid, all of which depend on nothing but the guest's own execution.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

#define KEY(c, page, idx) ((c)->tlb_gen << 38 | (u64)(idx) << 36 | ((page) & 0xfffffffffUL))
#define VALUE_LARGE 8u
#define VALUE_HUGE 16u /* 1 GiB */

bool itlb_init(struct core *c) {
    c->tlb_size = 4096;
    c->tlb = calloc(c->tlb_size, sizeof *c->tlb);
    c->tlb_gen = 1;
    return c->tlb != NULL;
}

void itlb_flush(struct core *c) {
    c->tlb_flushes++;
    c->tlb_used = c->tlb_live = 0;
    if (++c->tlb_gen >> 26) { /* generation numbers are used up: start over */
        memset(c->tlb, 0, c->tlb_size * sizeof *c->tlb);
        c->tlb_gen = 1;
    }
}

static struct tlb_entry *slot(struct core *c, u64 key) {
    u64 mask = c->tlb_size - 1;
    u64 i = (key * 0x9e3779b97f4a7c15UL) >> 20 & mask;
    /* Entries of older generations count as free. */
    while (c->tlb[i].key >> 38 == key >> 38 && c->tlb[i].key != key) i = (i + 1) & mask;
    return &c->tlb[i];
}

static void grow(struct core *c) {
    struct tlb_entry *old = c->tlb;
    u64 old_size = c->tlb_size, live = c->tlb_live;
    u64 size = live * 4 > old_size ? old_size * 2 : old_size; /* or only drop removed entries */
    struct tlb_entry *table = calloc(size, sizeof *table);
    if (!table) abort(); /* a few MiB of host memory: nothing sensible is left to do */
    c->tlb = table;
    c->tlb_size = size;
    c->tlb_used = 0;
    for (u64 i = 0; i < old_size; i++)
        if (old[i].key >> 38 == c->tlb_gen && old[i].value) {
            *slot(c, old[i].key) = old[i];
            c->tlb_used++;
        }
    free(old);
}

/* Large pages leave a marker for their region, so that INVLPG of any address in it is known to
 * concern all of it. Markers are kept with an index of their own and are not translations. */
enum { MARKER = 3 };
static u64 region_2m(u64 page) { return page >> 9 & 0x7ffffffUL; }
static u64 region_1g(u64 page) { return (page >> 18 & 0x3ffffUL) | 1UL << 35; }

static struct tlb_entry *place(struct core *c, u64 key) {
    struct tlb_entry *e = slot(c, key);
    if (e->key != key) {
        if (++c->tlb_used * 2 > c->tlb_size) {
            grow(c);
            e = slot(c, key);
            c->tlb_used++;
        }
        e->key = key;
        e->value = 0;
    }
    return e;
}

static void insert(struct core *c, u64 page, int idx, u64 paddr, int prot, u64 size) {
    struct tlb_entry *e = place(c, KEY(c, page, idx));
    if (!e->value) c->tlb_live++;
    e->value = (paddr & PAGE_MASK) | (size > PAGE_SIZE ? VALUE_LARGE : 0) | (size > 1UL << 29 ? VALUE_HUGE : 0) |
               (u64)(prot & 7);
    if (size > 1UL << 29) place(c, KEY(c, region_1g(page), MARKER))->value = 1;
    else if (size > PAGE_SIZE) place(c, KEY(c, region_2m(page), MARKER))->value = 1; /* or 4 MiB: both halves */
    if (size == 1UL << 22) place(c, KEY(c, region_2m(page ^ 512), MARKER))->value = 1;
}

static bool marked(struct core *c, u64 region) {
    u64 key = KEY(c, region, MARKER);
    return slot(c, key)->key == key;
}

/* Flush the engine's TLB without touching the guest's. */
void engine_tlb_flush(struct core *c) {
    c->host_flush = true;
    real.tlb_flush(c->cpu);
    c->host_flush = false;
}
EXPORT void core_tlb_flush_engine(struct core *c) { engine_tlb_flush(c); }
EXPORT void core_tlb_flush(struct core *c) {
    itlb_flush(c);
    engine_tlb_flush(c);
}

/* ---- interposed ----------------------------------------------------------------------------- */

enum { PROT_R = 1, PROT_W = 2, PROT_X = 4 };

EXPORT bool x86_cpu_tlb_fill_x86_64(void *cpu, u64 addr, int size, int access, int idx, bool probe,
                                    uintptr_t ra) {
    struct core *c = core_of_cpu(cpu);
    if (!c) return real.x86_cpu_tlb_fill(cpu, addr, size, access, idx, probe, ra);
    static const int need[] = {PROT_R, PROT_W, PROT_X};
    u64 page = addr >> 12;
    struct tlb_entry *e = slot(c, KEY(c, page, idx));
    if (e->key == KEY(c, page, idx) && (e->value & (u64)need[access])) {
        c->tlb_refills++;
        c->from_itlb = true;
        real.tlb_set_page_with_attrs(cpu, addr & PAGE_MASK, e->value & PAGE_MASK, c->tlb_attrs,
                                     (int)(e->value & 7), idx, PAGE_SIZE);
        c->from_itlb = false;
        return true;
    }
    c->tlb_walks++;
    /* When the table is full it is flushed right after this instruction (see relimit). */
    if (c->tlb_live >= TLB_LIVE_MAX - 1 && access != 2) leave_block(c, ra);
    /* A fetch that faults does so between blocks: nothing of the last block is to be given back. */
    if (access == 2) {
        c->tb = NULL;
        c->tb_insns = 0;
    }
    return real.x86_cpu_tlb_fill(cpu, addr, size, access, idx, probe, ra);
}

EXPORT void tlb_set_page_with_attrs_x86_64(void *cpu, u64 vaddr, u64 paddr, u32 attrs, int prot, int idx,
                                           u64 size) {
    struct core *c = core_of_cpu(cpu);
    if (c) {
        c->tlb_attrs = attrs;
        insert(c, vaddr >> 12, idx, paddr, prot, size);
        if (c->tlb_live >= TLB_LIVE_MAX) relimit(c);
        size = PAGE_SIZE; /* large pages are flushed here, as a whole */
    }
    real.tlb_set_page_with_attrs(cpu, vaddr & PAGE_MASK, paddr & PAGE_MASK, attrs, prot, idx, size);
}

EXPORT void tlb_flush_by_mmuidx_x86_64(void *cpu, u16 map) {
    struct core *c = core_of_cpu(cpu);
    if (c && !c->host_flush) itlb_flush(c);
    real.tlb_flush_by_mmuidx(cpu, map);
}

EXPORT void tlb_flush_page_by_mmuidx_x86_64(void *cpu, u64 addr, u16 map) {
    struct core *c = core_of_cpu(cpu);
    if (c && !c->host_flush) {
        u64 page = addr >> 12;
        if (marked(c, region_2m(page)) || marked(c, region_1g(page))) { /* all of a large page must go */
            itlb_flush(c);
            real.tlb_flush_by_mmuidx(cpu, 7);
            return;
        }
        for (int idx = 0; idx < 3; idx++) {
            struct tlb_entry *e = slot(c, KEY(c, page, idx));
            if (e->key == KEY(c, page, idx) && e->value) {
                e->value = 0;
                c->tlb_live--;
            }
        }
    }
    real.tlb_flush_page_by_mmuidx(cpu, addr, map);
}

/* ---- state ---------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b) {
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

/* Write (key without generation, value) pairs to `out` (2 * count words), in canonical order if
 * `sorted`; returns count. With out NULL only counts. */
EXPORT u64 core_tlb_save(struct core *c, u64 *out, int sorted) {
    u64 n = 0;
    if (!out) return c->tlb_live;
    for (u64 i = 0; i < c->tlb_size && n < c->tlb_live; i++)
        if (c->tlb[i].key >> 38 == c->tlb_gen && (c->tlb[i].key >> 36 & 3) != MARKER && c->tlb[i].value) {
            out[2 * n] = c->tlb[i].key & ((1UL << 38) - 1);
            out[2 * n++ + 1] = c->tlb[i].value;
        }
    if (sorted) qsort(out, n, 16, by_key);
    return n;
}

EXPORT void core_tlb_load(struct core *c, const u64 *in, u64 count) {
    itlb_flush(c);
    for (u64 i = 0; i < count; i++)
        insert(c, in[2 * i] & 0xfffffffffUL, (int)(in[2 * i] >> 36 & 3), in[2 * i + 1],
               (int)(in[2 * i + 1] & 7),
               in[2 * i + 1] & VALUE_HUGE ? 1UL << 30 : in[2 * i + 1] & VALUE_LARGE ? 1UL << 21 : PAGE_SIZE);
    engine_tlb_flush(c);
}
