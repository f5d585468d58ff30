# What Osprey exports, read by transformers and the gguf package; skipped, with the reason, where they are not installed.
add_test(NAME e2e:transformers COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/models/hf/transformers.sh $<TARGET_FILE:osprey>
  ${PROJECT_SOURCE_DIR})
set_tests_properties(e2e:transformers PROPERTIES LABELS e2e TIMEOUT 300 SKIP_RETURN_CODE 77)
