"""tracereplay: record what every operator of an LLM generation took and gave, replay it, name the one to blame."""
