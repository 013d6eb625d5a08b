"""Where implementations come from: one folder a backend. A config is passed in; a backend looks nothing up."""
