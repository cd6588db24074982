"""Reports as JSON documents, tables and pictures: compilations, artifacts, benchmarks, memory plans, rooflines."""
