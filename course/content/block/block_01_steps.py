def block(x, norm_1, attention, norm_2, feed_forward):
    normed = norm_1(x)
    mixed = attention(normed)
    middle = x.clone()
    middle += mixed
    return middle.add(feed_forward(norm_2(middle)))
