"""Pages and figures for people: run and cohort reports, explanations, model card."""
