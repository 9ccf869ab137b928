/* What the releases differ in. The build names the release: -DRELEASE_HEADER="..."; see releases/. */
#pragma once
#include RELEASE_HEADER
