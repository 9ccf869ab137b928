/* What this kernel accepts from the one before it, where tools find it in the ELF file: `luemu check IMAGE --for`
 * predicts from it whether a handover will be adopted. */
#include "abi.h"

__used const char kho_compatible[] = KHO_FDT_COMPATIBLE;
