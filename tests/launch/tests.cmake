# Runs over MPI: a rank that dies, and two hosts.
foreach(name train_rank_dies two_hosts_train)
  add_test(NAME mpi:${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/${name}.sh
    $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
  set_tests_properties(mpi:${name} PROPERTIES LABELS "mpi;e2e" TIMEOUT 300 PROCESSORS 2 SKIP_RETURN_CODE 77)
endforeach()

# What a run survives: kill -9, signals, a second run, damaged files, a full disk.
add_test(NAME e2e:survive COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/survive.sh $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR})
set_tests_properties(e2e:survive PROPERTIES LABELS e2e TIMEOUT 600 PROCESSORS 2)

# The benchmark runs and says what it promises; its figures are read by people, not by tests.
add_test(NAME e2e:bench_train COMMAND osprey bench train --steps 1 --threads 2 --optimizer adamw)
set_tests_properties(e2e:bench_train PROPERTIES LABELS "e2e;slow" TIMEOUT 300 PROCESSORS 2
  PASS_REGULAR_EXPRESSION "fraction +[0-9]")

# Wrong input for every command: one clear error each, nothing left behind.
add_test(NAME e2e:bad_input COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/bad_input.sh
  $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
set_tests_properties(e2e:bad_input PROPERTIES LABELS "e2e;mpi" TIMEOUT 300 PROCESSORS 2)

# A grid for a scaling law: planned, swept, recorded once, fitted.
add_test(NAME e2e:scaling COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/scaling.sh $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR})
set_tests_properties(e2e:scaling PROPERTIES LABELS e2e TIMEOUT 600 PROCESSORS 2)

# A quantized run is packed; the packed checkpoint computes what was trained.
add_test(NAME e2e:packed COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/packed.sh $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR})
set_tests_properties(e2e:packed PROPERTIES LABELS e2e TIMEOUT 300 PROCESSORS 2)

# Adapters, read by PEFT; skipped, with the reason, where it is not installed.
add_test(NAME e2e:peft COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/peft.sh $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR})
set_tests_properties(e2e:peft PROPERTIES LABELS e2e TIMEOUT 300 SKIP_RETURN_CODE 77)
