"""Ab initio cryo-EM volumes from image moments, as a plugin for ASPIRE-Python."""
