/* Between head.c and setup.c: the direct map in the making. */
#pragma once
#include "types.h"

phys_addr_t image_to_phys(const void *p);
/* Maps the 2 MiB page of this address; tables come from alloc (which returns zeroed pages), or from the early pool. */
void direct_map_2m(phys_addr_t phys, phys_addr_t (*alloc)(void));
phys_addr_t boot_parameters_phys(bool *pvh);
