"""quantizing"""
