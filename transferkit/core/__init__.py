"""What every part of the package may use, and what sees nothing but itself."""
