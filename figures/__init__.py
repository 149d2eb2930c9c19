"""The paper's tables and figures, and what makes them. Imports go one way: figures -> utils -> models."""
