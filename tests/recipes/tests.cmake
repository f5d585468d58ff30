add_test(NAME e2e:smoke_recipes COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/recipes/smoke.sh $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR})
set_tests_properties(e2e:smoke_recipes PROPERTIES LABELS e2e TIMEOUT 600 PROCESSORS 2)
