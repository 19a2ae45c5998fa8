namespace tinycluster {}
