/* Where the parts of virtual memory begin, for those who look into it from outside: a debugger sees no macros. Linux
 * has variables of the same names. */
#include "page.h"

__used const u64 page_offset_base = PAGE_OFFSET;
__used const u64 vmalloc_base = VMALLOC_BASE;
__used const u64 vmemmap_base = VMEMMAP_BASE;
