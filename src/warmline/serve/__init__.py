"""What a visitor meets: the page, and the small web server behind it. Every word goes through `chat`, the one door."""
