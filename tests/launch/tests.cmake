if(TARGET osprey)
  set(scripts train_rank_dies)
  # It compares the losses in metrics.jsonl, which the run watch writes: the condition goes once that is here.
  if(EXISTS ${PROJECT_SOURCE_DIR}/framework/telemetry/run_watch.cpp)
    list(APPEND scripts two_hosts_train)
  endif()
  foreach(name ${scripts})
    add_test(NAME mpi:${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/${name}.sh
      $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
    set_tests_properties(mpi:${name} PROPERTIES LABELS "mpi;e2e" TIMEOUT 300 PROCESSORS 2 SKIP_RETURN_CODE 77)
  endforeach()
endif()
# What a run survives: kill -9, signals, a second run, damaged files, a full disk.
if(TARGET osprey)
  add_test(NAME e2e:survive COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/survive.sh $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR})
  set_tests_properties(e2e:survive PROPERTIES LABELS e2e TIMEOUT 600 PROCESSORS 2)
endif()

# The benchmark runs and says what it promises; its figures are read by people, not by tests.
if(TARGET osprey)
  add_test(NAME e2e:bench_train COMMAND osprey bench train --steps 1 --threads 2 --optimizer adamw)
  set_tests_properties(e2e:bench_train PROPERTIES LABELS "e2e;slow" TIMEOUT 300 PROCESSORS 2
    PASS_REGULAR_EXPRESSION "fraction +[0-9]")
endif()
