"""Where Ray and MLflow live: one file = one job. Nothing in `polyvit` imports from here."""
