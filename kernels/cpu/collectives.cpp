#include <nanobind/nanobind.h>
NB_MODULE(_collectives, m) { m.doc() = "tinycluster"; }
